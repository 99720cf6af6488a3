"""How clients connect, send and close: nats-py's own options, set for fail-over.

nats-py's defaults notice a silent server after four minutes (two pings of 120 s), dial the next one without jitter,
wait 2 s before they dial a server that failed again, and give it up for good after 60 attempts. On a mesh whose servers
come and go, that is first a stampede, then slow, and in the end final.
"""

import asyncio
import contextlib
import inspect
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import nats.errors
from nats.aio.client import Client, Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from mesh_lab.errors import CredentialsError, LoginRefusedError, NotReadyError, PublishRefusedError
from mesh_lab.patterns.addresses import ConnectOptions, CredentialsFile

T = TypeVar("T")
LOOK_EVERY_S = 0.05  # how soon a wait notices that the client was closed
NEVER_S = 10**8
Inbox = tuple[str, Subscription]
_left_alone: set["asyncio.Task[Any]"] = set()  # asyncio itself holds only weak references to tasks

CLOSE_WITHIN_S, QUICK_ATTEMPTS = 2.0, 5
_OF_CONNECTIONS = (nats.errors.Error, OSError)  # a TimeoutError too
_REFUSED = (
    "authorization violation",
    "authentication",
    "offers no tls",
)  # as servers and nats-py say it, expired and revoked included
_NO_TLS = "the server offers no TLS, and it was asked for"


def jittered_reconnect(servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
    """Choose any server of the pool, and a wait of 50 to 250 ms, so that a dead server's clients do not dial as one.

    Where each of them failed some times already, the wait is up to 1 s: a server logs every login that it refuses.
    """
    patient = min(server.reconnects for server in servers) >= QUICK_ATTEMPTS
    return random.choice(servers), random.uniform(0.5, 1.0) if patient else random.uniform(0.05, 0.25)


def is_login_refused(err: BaseException | None) -> bool:
    """Return whether a server let a client not in, or out, because of who it is: trying on is of no use for now."""
    refused = isinstance(err, nats.errors.Error) and any(words in str(err).lower() for words in _REFUSED)
    return refused or isinstance(err, nats.errors.AuthorizationError | CredentialsError | ssl.SSLCertVerificationError)


def is_forbidden(err: BaseException | None, subject: str) -> bool:
    """Return whether a server's complaint is that the user may not publish or subscribe to a subject so begun."""
    return "permissions violation" in (words := str(err).lower()) and f'"{subject.lower()}' in words


async def connect(
    options: ConnectOptions, *, within: float = 10.0, log: Callable[[str], object] | None = None, **more: Any
) -> Client:
    """Return a connected, plain nats-py client.

    Args:
        options: Addresses and credentials. Where a credentials file grants one inbox, ``_INBOX_<name>.>``, it is used.
        within: Seconds for the first connection, if a server may yet start; once connected, the client reconnects for
            as long as it takes.
        log: Called with a line when the connected client cannot reach its servers, when they refuse it, when it is
            back, and for each kind of other error, so that a service says what is wrong, and says it once.
        more: Any further arguments of ``nats.connect``; they win over the defaults here.

    Raises:
        LoginRefusedError: Every server refused the user or its certificate, or is not trusted itself: its certificate
            is another authority's, or it offers no TLS where that was asked for.
        CredentialsError: The credentials file cannot be used.
        NotReadyError: No server accepted the client; the message says what went wrong last.
        nats.errors.InvalidCallbackTypeError: A callback is not a coroutine function.
    """
    given: dict[str, Any] = {**options, **more}
    if isinstance(path := given.get("user_credentials"), str):
        file = CredentialsFile(path)
        given |= {"user_credentials": None, "user_jwt_cb": file.token, "signature_cb": file.sign}
        if inbox := file.inbox():
            given.setdefault("inbox_prefix", inbox)
    on_error = given.pop("error_cb", None)
    if on_error is not None and not inspect.iscoroutinefunction(on_error):
        raise nats.errors.InvalidCallbackTypeError
    last, refusals, logged = list[Exception](), list[Exception](), set[str]()
    connecting = Client()
    schemes = {str(url).partition("://")[0] for url in given.get("servers", ())}
    wants_tls = "tls" in schemes or (given.get("tls") is not None and not schemes & {"ws", "wss"})
    given |= _told_by_tls_alone(connecting, given) if wants_tls else {}
    client: Client | None = None

    async def note(error: Exception) -> None:
        last[:] = [error]  # nats-py's default prints each error of a reconnecting client with its traceback
        if client is None and is_login_refused(error):
            refusals.append(error)
            if len(refusals) >= len(given.get("servers", ())):  # as often as there are servers
                limit.reschedule(0.0)
        if client is not None and log is not None and (on_error is None or isinstance(error, _OF_CONNECTIONS)):
            _log_once(client, error, log, logged)
        if on_error is not None:
            await on_error(error)

    async def say_back() -> None:
        if log is not None and logged:
            logged.clear()
            log("connected again")

    defaults: dict[str, Any] = {
        "ping_interval": 2,  # a silent server is noticed after 2 pings, in 4 to 6 s
        "max_outstanding_pings": 2,
        "max_reconnect_attempts": -1,  # never give up: the mesh comes back
        "reconnect_to_server_handler": jittered_reconnect,
        "reconnected_cb": say_back,
    }
    try:
        async with asyncio.timeout(within) as limit:
            await connecting.connect(**{**defaults, **given, "error_cb": note})
            client = connecting
    except nats.errors.InvalidCallbackTypeError:
        raise  # the caller's mistake
    except (TimeoutError, OSError, nats.errors.Error) as err:
        if refusals:
            which = "check the user, its password or token, the credentials file, the certificates"
            raise LoginRefusedError(f"no server let us in: {refusals[-1]!r}; {which}") from err
        raise NotReadyError(f"no server let us in within {within} s: {(last or [err])[0]!r}") from err
    if wants_tls and not _offers_tls(client):  # who shows a certificate alone has told nothing that could be guarded
        await close(client)
        raise LoginRefusedError(f"{_NO_TLS}; somebody may stand between")
    if not client.is_connected:
        # nats-py 2.16 returns such a client when the server hangs up while it authenticates, and goes on trying.
        await client.close()
        raise NotReadyError("a server accepted the connection and hung up; check its log and the account")
    return client


def _told_by_tls_alone(client: Client, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tells a server who the client is, as functions that raise where it does not talk TLS.

    nats-py 2.16 goes on in plain text where TLS is asked for and INFO, which travels in plain text itself, does not
    offer it (``Client._process_connect_init``): whoever stands between could strip it, and read the password.
    """

    def guarded(told: Any) -> Callable[..., Any]:
        def tell(*nonce: str) -> Any:
            if not _offers_tls(client):
                raise nats.errors.Error(_NO_TLS)
            return told(*nonce) if callable(told) else told

        return tell

    names = ("user", "password", "token", "signature_cb")
    return {name: guarded(given[name]) for name in names if given.get(name) is not None}


def _offers_tls(client: Client) -> bool:
    return bool(client._server_info.get("tls_required"))  # nats-py 2.16 has no public attribute for it


async def flush(client: Client, *, within: float = 10.0) -> None:
    """Return when the server has replied to a PING; unlike ``client.flush``, it can time out and be cancelled.

    Args:
        client: A connected nats-py client; while it reconnects, the PING waits for the next server.
        within: Seconds to wait for the reply.

    Raises:
        nats.errors.FlushTimeoutError: No server replied in time.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    # In a task of its own, which nobody cancels: nats-py 2.16 stops reading for good when the PONG of a flush comes
    # that was cancelled or timed out (Client._process_pong).
    trip = uncancelled(_round_trip(client))
    if not (await asyncio.wait({trip}, timeout=within))[0]:
        raise nats.errors.FlushTimeoutError
    if not trip.result():
        raise nats.errors.ConnectionClosedError


def uncancelled(work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Return a task of its own for work that goes on when whoever waits for it is cancelled or gives up."""

    def forget(task: "asyncio.Task[T]") -> None:
        _left_alone.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved, so that asyncio does not warn of it when nobody waits any more

    task = asyncio.create_task(work)
    _left_alone.add(task)
    task.add_done_callback(forget)
    return task


async def _round_trip(client: Client) -> bool:
    """Return ``True`` when a PONG has come, ``False`` when the client was closed before."""
    while not client.is_closed:
        connection = client.stats["reconnects"]
        if client.is_connected:
            flushing = asyncio.ensure_future(client.flush(timeout=NEVER_S))
            while not flushing.done() and not client.is_closed and client.stats["reconnects"] == connection:
                await asyncio.wait({flushing}, timeout=LOOK_EVERY_S)
            if not flushing.cancel() and flushing.exception() is None:  # else no PONG of its connection comes any more
                return True
        await asyncio.sleep(LOOK_EVERY_S)
    return False


def _log_once(client: Client, error: Exception, log: Callable[[str], object], logged: set[str]) -> None:
    """Write an error's line, unless one of its kind is in ``logged``, which is emptied when the client is back."""
    if isinstance(error, nats.errors.UnexpectedEOF):
        return  # the first attempt to reconnect says more, if it fails
    kind, line = str(error) if type(error) is nats.errors.Error else type(error).__name__, repr(error)
    if not client.is_connected:
        tried = sum(server.reconnects for server in client.server_pool) + 1
        if tried < len(client.server_pool) and not is_login_refused(error):
            return  # another server may take it at the next attempt
        kind = "refused" if is_login_refused(error) else "away"
        line = f"{'the servers refuse the login' if kind == 'refused' else 'no server'}: {error!r}; trying on"
    if kind not in logged:
        logged.add(kind)
        log(line)


async def close(client: Client, *, drain: bool = False, within: float = CLOSE_WITHIN_S) -> None:
    """Close a client, whatever its connection is like: no program's end depends on a server.

    With ``drain``, its subscriptions first handle what they have received. After ``within`` seconds it is left alone.
    """
    # A task, not asyncio.timeout: nats-py's close() may itself raise CancelledError when a server hangs.
    ending = uncancelled(client.drain() if drain and client.is_connected else client.close())
    await asyncio.wait({ending}, timeout=within)
    error = ending.exception() if ending.done() and not ending.cancelled() else None
    if error is not None and not (isinstance(error, _OF_CONNECTIONS) or is_send_failure(error)):
        raise error
    if drain and not client.is_closed:
        await close(client, within=within)


async def publish_if_connected(
    client: Client, subject: str, payload: bytes = b"", *, reply: str = "", headers: Mapping[str, str] | None = None
) -> bool:
    """Publish a message and return ``True``; return ``False`` while the client is not connected.

    The arguments are those of ``client.publish``, which would keep every copy of a message while it reconnects.

    Raises:
        PublishRefusedError: The message is larger than the server takes, or its subject or a header is malformed.
        nats.errors.ConnectionClosedError: The client was closed, or is being drained.
    """
    if client.is_closed:
        raise nats.errors.ConnectionClosedError
    if not client.is_connected:
        return False
    expect_room(client, subject, payload, headers)
    try:
        await client.publish(subject, payload, reply=reply, headers=headers)  # type: ignore[arg-type]  # only read
    except (nats.errors.BadSubjectError, nats.errors.BadHeaderError, UnicodeEncodeError) as err:
        raise PublishRefusedError(f"{subject!r}: {err}, in the subject or the headers {names_of(headers)}") from err
    except nats.errors.ConnectionDrainingError as err:
        raise nats.errors.ConnectionClosedError from err
    except nats.errors.OutboundBufferLimitError:
        return False
    except (RuntimeError, OSError) as err:
        if not is_send_failure(err):
            raise
        # It is in nats-py's buffer by now, which it sends when it is connected again.
    return True


def expect_room(client: Client, subject: str, payload: bytes, headers: Mapping[str, str] | None) -> None:
    """Raise PublishRefusedError for a message that is larger, with its headers, than the server takes."""
    # nats-py 2.16 compares the payload alone, and the server, which counts the headers as well, hangs up for good.
    most = len(payload) + 12  # with which nearly no message has to be counted exactly
    for name, value in headers.items() if headers else ():
        most += 4 * (len(name) + len(value) + 1)
    if most > client.max_payload and message_bytes(payload, headers) > client.max_payload:
        size = f"{len(payload):,} bytes" + (f" and {message_bytes(b'', headers):,} of headers" if headers else "")
        raise PublishRefusedError(f"{subject}: {size}, the server takes {client.max_payload:,}")


def names_of(headers: Mapping[str, str] | None) -> str:
    """Return the headers' names for an error: a value may be a secret."""
    return ", ".join(map(repr, headers or ())) or "(none)"


def message_bytes(payload: bytes, headers: Mapping[str, str] | None) -> int:
    """Return the size of a message as the server counts it: its payload, and its headers as nats-py writes them."""
    if headers is None:
        return len(payload)
    texts = (text.strip().encode(errors="surrogatepass") for pair in headers.items() for text in pair)
    return len("NATS/1.0\r\n\r\n") + sum(map(len, texts)) + 4 * len(headers) + len(payload)


async def first_reply(
    client: Client,
    subject: str,
    payload: bytes = b"",
    *,
    accept: Callable[[Msg], T | None],
    within: float,
    headers: Mapping[str, str] | None = None,
) -> T:
    """Publish a message once and return what ``accept`` makes of the first reply that it does not pass over (``None``).

    Whoever listens to a stream's subject as well may reply, and ``client.request`` would return that.

    Raises:
        PublishRefusedError: The message cannot be sent.
        nats.errors.NoRespondersError: Nobody listens to the subject.
        nats.errors.TimeoutError: No such reply came ``within`` as many seconds.
        nats.errors.ConnectionReconnectingError: The client was not connected all the time; nothing was sent.
        nats.errors.ConnectionClosedError: The client was closed.
    """
    replied: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()

    async def note(msg: Msg) -> None:
        found = None if (nobody := is_no_responders(msg)) else accept(msg)
        if not replied.done() and (nobody or found is not None):
            replied.set_result(found)

    deadline, sent = time.monotonic() + within, False
    inbox, subscription = await open_inbox(client, note)
    try:
        while not replied.done():
            if client.is_closed:
                raise nats.errors.ConnectionClosedError
            sent = sent or await publish_if_connected(client, subject, payload, reply=inbox, headers=headers)
            if (left := deadline - time.monotonic()) <= 0:
                raise nats.errors.TimeoutError if sent else nats.errors.ConnectionReconnectingError
            await asyncio.wait({replied}, timeout=min(left, LOOK_EVERY_S))
    finally:
        await unsubscribe(subscription)
    if (reply := replied.result()) is None:
        raise nats.errors.NoRespondersError
    return reply


def is_no_responders(msg: Msg) -> bool:
    """Return whether a reply is the server's word that nobody listens to the subject."""
    return not msg.data and (msg.headers or {}).get("Status") == "503"


async def open_inbox(client: Client, note: Callable[[Msg], Awaitable[None]], *, tail: str = "") -> Inbox:
    """Return a new inbox, and the subscription to it or to what ``tail`` names below it; a closed client raises."""
    while True:
        inbox = client.new_inbox()
        try:
            return inbox, await client.subscribe(inbox + tail, cb=note, pending_msgs_limit=0, pending_bytes_limit=0)
        except nats.errors.ConnectionDrainingError as err:
            raise nats.errors.ConnectionClosedError from err
        except (RuntimeError, OSError) as err:  # a subscription is left behind, to which nobody replies
            if not is_send_failure(err):
                raise
        await asyncio.sleep(LOOK_EVERY_S)


async def unsubscribe(subscription: Subscription) -> None:
    """End a subscription; a connection that is closed, gone or going has ended it, or tells the next server."""
    try:
        with contextlib.suppress(nats.errors.Error):
            await subscription.unsubscribe()
    except (RuntimeError, OSError) as err:
        if not is_send_failure(err):
            raise


def is_send_failure(err: BaseException) -> bool:
    """Return whether a client raised only because its connection can take nothing at this moment."""
    # uvloop's, for a connection that nats-py considers alive until it reads its end; then it reconnects.
    closed = type(err) is RuntimeError and "closed" in str(err)  # an error of ours may name a subject with that word
    return closed or isinstance(err, nats.errors.OutboundBufferLimitError | ConnectionResetError | BrokenPipeError)


def server_name(client: Client) -> str:
    """Return the name of the server to which a client is connected, or was last."""
    return str(client._server_info.get("server_name", ""))  # nats-py 2.16 has no public attribute for it


async def server_at(url: str, options: ConnectOptions, *, within: float) -> str | None:
    """Return the name of the server at an address, as it says itself; ``None`` where none lets the client in."""
    try:
        client = await connect({**options, "servers": [url]}, within=within, allow_reconnect=False)
    except (NotReadyError, LoginRefusedError):
        return None
    await close(client)
    return server_name(client)
