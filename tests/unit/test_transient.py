"""What is a transient error, error by error: the one definition that publishers, readers, retries and leases share."""

from pathlib import Path

import nats.errors
import pytest
from nats.js.errors import (
    APIError,
    KeyDeletedError,
    KeyWrongLastSequenceError,
    NoStreamResponseError,
    NotFoundError,
    ServiceUnavailableError,
)

from mesh_lab.errors import MeshLabError, NotReadyError, PublishRefusedError, UnknownOutcomeError
from mesh_lab.patterns.jetstream_api import (
    PERMANENT_ERR_CODES,
    TRANSIENT_ERR_CODES,
    ApiError,
    is_transient,
)

PACKAGE = Path(__file__).parents[2] / "mesh_lab"
TRANSIENT, PERMANENT = True, False

# Codes and numbers as nats-server's errors.json has them; where definitions differed before, the reason decides.
REPLIES = [
    (503, 10004, "incomplete results", TRANSIENT, "a server did not reply to the others in time"),
    (503, 10008, "JetStream system temporarily unavailable", TRANSIENT, "there is no leader"),
    (500, 10009, "JetStream cluster can not handle request", TRANSIENT, "the leader changed meanwhile"),
    (503, 10023, "insufficient resources", TRANSIENT, "the server holds back what it cannot take at the moment"),
    (503, 10039, "JetStream not enabled for account", TRANSIENT, "a server learns of a new account a moment later"),
    (500, 10041, "raft: no quorum", TRANSIENT, "a server of the group may come back"),
    (500, 10118, "stream is offline", TRANSIENT, "its servers may come back"),
    (503, 10163, "expected last sequence per subject temporarily unavailable", TRANSIENT, "the name says so"),
    (429, 10167, "too many requests", TRANSIENT, "the queue drains"),
    (429, 10210, "atomic publish too many inflight", TRANSIENT, "other batches end"),
    (409, 10158, "duplicate message id is in process", TRANSIENT, "the first copy will be stored or not"),
    (400, 10005, "no suitable peers for placement", TRANSIENT, "a server that is away comes back; the code says 400"),
    (500, 10006, "JetStream not in clustered mode", PERMANENT, "a configuration"),
    (503, 10010, "JetStream clustering support required", PERMANENT, "a configuration; the code says 503"),
    (500, 10028, "insufficient memory resources available", PERMANENT, "a limit"),
    (500, 10047, "insufficient storage resources available", PERMANENT, "a limit"),
    (500, 10052, "stream subject is not valid", PERMANENT, "as invalid the next time; the code says 500"),
    (500, 10074, "replicas > 1 not supported in non-clustered mode", PERMANENT, "a configuration"),
    (503, 10077, "maximum messages exceeded", PERMANENT, "a limit: the publisher is told; the code says 503"),
    (500, 10111, "rollup not permitted", PERMANENT, "a configuration"),
    (400, 10026, "maximum consumers limit reached", PERMANENT, "a limit"),
    (400, 10027, "maximum number of streams reached", PERMANENT, "a limit"),
    (400, 10054, "message size exceeds maximum allowed", PERMANENT, "it will not shrink"),
    (400, 10058, "stream name already in use with a different configuration", PERMANENT, "somebody made it"),
    (404, 10059, "stream not found", PERMANENT, "wait_stream is for one that was made a moment ago"),
    (400, 10071, "wrong last sequence: 7", PERMANENT, "read again, and decide again"),
    (400, 10164, "wrong last sequence", PERMANENT, "likewise"),
    (400, 10201, "atomic publish batch contains duplicate message id", PERMANENT, "the stream has it"),
]


@pytest.mark.parametrize(
    ("code", "err_code", "description", "verdict", "reason"), REPLIES, ids=lambda value: str(value)[:40]
)
def test_a_reply_of_the_server_is_transient_or_not_in_either_form(
    code: int, err_code: int, description: str, verdict: bool, reason: str
) -> None:
    try:
        raised: APIError = APIError.from_error({"code": code, "err_code": err_code, "description": description})
    except APIError as err:
        raised = err
    assert is_transient(raised) is verdict, reason
    assert is_transient(ApiError(code, err_code, description)) is verdict, reason


@pytest.mark.parametrize(
    ("error", "verdict", "reason"),
    [
        (TimeoutError(), TRANSIENT, "no reply came"),
        (nats.errors.TimeoutError(), TRANSIENT, "no reply came"),
        (nats.errors.FlushTimeoutError(), TRANSIENT, "no PONG came"),
        (nats.errors.NoRespondersError(), TRANSIENT, "no server knows of a subscriber yet, or of a leader"),
        (NoStreamResponseError(), TRANSIENT, "likewise, as js.publish raises it"),
        (ServiceUnavailableError(), TRANSIENT, "a status 503, without a number"),
        (nats.errors.OutboundBufferLimitError(), TRANSIENT, "the client reconnects"),
        (nats.errors.ConnectionReconnectingError(), TRANSIENT, "the client reconnects"),
        (nats.errors.StaleConnectionError(), TRANSIENT, "the client reconnects"),
        (RuntimeError("unable to perform operation on <TCPTransport closed=True …>; the handler is closed"), TRANSIENT,
         "uvloop's error for a connection that has just ended"),
        (NotReadyError("condition not met within 5 s"), TRANSIENT, "a deadline, too"),
        (UnknownOutcomeError("no answer in 30 s"), TRANSIENT, "a deadline, too"),
        (nats.errors.ConnectionClosedError(), PERMANENT, "a client that is closed stays closed"),
        (nats.errors.ConnectionDrainingError(), PERMANENT, "a client that drains is closed next"),
        (nats.errors.AuthorizationError(), PERMANENT, "a permission"),
        (nats.errors.MaxPayloadError(), PERMANENT, "it will not shrink"),
        (NotFoundError(code=404, err_code=10014), PERMANENT, "somebody has to make it"),
        (KeyDeletedError(), PERMANENT, "nats-py's key-value errors leave their numbers out"),
        (KeyWrongLastSequenceError("wrong last sequence: 3"), PERMANENT, "read again, and decide again"),
        (PublishRefusedError("refused"), PERMANENT, "it would be refused again"),
        (MeshLabError("anything"), PERMANENT, "anything else is the program's"),
        (RuntimeError("anything"), PERMANENT, "anything else is the program's"),
        (ValueError("anything"), PERMANENT, "anything else is the program's"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)  # fmt: skip
def test_an_exception_is_transient_or_not(error: Exception, verdict: bool, reason: str) -> None:
    assert is_transient(error) is verdict, reason


def test_one_module_of_the_order_mesh_writes_the_prefix_by_hand() -> None:
    folders = [PACKAGE / "patterns", PACKAGE / "orders"]
    by_hand = {path.name for folder in folders for path in folder.rglob("*.py") if "$JS" in path.read_text()}
    assert by_hand == {"jetstream_api.py"}  # it knows a domain's prefix


def test_no_number_is_on_both_lists() -> None:
    assert not TRANSIENT_ERR_CODES & PERMANENT_ERR_CODES


def test_an_error_of_ours_that_names_a_subject_with_the_word_closed_is_no_failure_to_send() -> None:
    assert is_transient(RuntimeError("TCPTransport closed=True"))
    assert not is_transient(PublishRefusedError("tickets.closed: 2,000,000 bytes, the server takes 1,048,576"))
