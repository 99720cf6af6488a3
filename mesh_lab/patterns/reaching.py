"""Wait until a stream or a consumer can be reached from where a client is.

``add_stream`` returns when the stream stands. In a cluster it may stand on another server, and the word of what it
listens to travels between the servers on a way of its own: for some milliseconds this client's server knows of
nobody who would answer, and says so. A service tries again, as :class:`~mesh_lab.patterns.publishing.WindowedPublisher`
does; a lesson or a test that makes a stream and uses it in the next line waits here.
"""

from functools import partial

import nats.errors
import nats.js.api
from nats.aio.client import Client

from mesh_lab.patterns.waiting import eventually

ANSWER_WITHIN_S = 0.5
NO_STREAM = "_"

Probe = tuple[str, bytes, dict[str, str] | None]


async def reachable(client: Client, stream: str, consumer: str | None = None, *, within: float = 10.0) -> None:
    """Return when the server that this client is connected to knows who answers for a stream or a consumer.

    Nothing is stored and nothing delivered: the questions are such that the answer is a refusal. Whoever subscribes
    to the stream's subjects sees one empty message.

    Args:
        client: A connected nats-py client.
        stream: Name of a stream that exists.
        consumer: Name of one of its pull consumers; ``None`` asks for the stream's own subjects.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: Nobody answered in time.
        nats.js.errors.NotFoundError: There is no such stream.
    """
    for probe in await _probes(client, stream, consumer, within):
        await eventually(partial(_answered, client, probe), within=within)


async def _answered(client: Client, probe: Probe) -> bool:
    subject, payload, headers = probe
    try:
        await client.request(subject, payload, timeout=ANSWER_WITHIN_S, headers=headers)
    except (nats.errors.NoRespondersError, nats.errors.TimeoutError):
        return False
    return True


async def _probes(client: Client, stream: str, consumer: str | None, within: float) -> list[Probe]:
    if consumer is not None:
        # No JSON, so the consumer answers "400 Bad Request" and keeps its messages.
        return [(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}", b"{", None)]
    config = (await client.jetstream(timeout=within).stream_info(stream)).config
    # A message that expects to land in another stream is refused (err_code 10060) before it is stored.
    expect: dict[str, str] = {nats.js.api.Header.EXPECTED_STREAM.value: NO_STREAM}
    probes: list[Probe] = [
        (subject.replace("*", NO_STREAM).replace(">", NO_STREAM), b"", expect) for subject in config.subjects or []
    ]
    if config.allow_direct:
        probes.append((f"$JS.API.DIRECT.GET.{stream}", b"", None))  # an empty question: "408 Empty Request"
    return probes
