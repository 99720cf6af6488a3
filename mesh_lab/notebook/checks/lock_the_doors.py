"""The checks of notebook 09: least privilege for a service, a key changed without a gap, a connection that is safe."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import BadConfigError, NotReadyError
from mesh_lab.notebook.checks.doors import enter, lets_in, orders_to_ship
from mesh_lab.notebook.exercises import Verdict, correct, exercise, not_yet
from mesh_lab.patterns import cancel_and_join, eventually, flush_through, retry
from mesh_lab.security import Authority, Key
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh

REFUSED_WITHIN_S = 3.0
ACKNOWLEDGED_WITHIN_S = 3.0
SOME_ORDERS = 20


# 9.1

MUST_NOT_PUBLISH = {
    "orders.eu.000001.placed": "publish placed orders",
    "orders.eu.000001.paid": "publish paid events",
    "$JS.API.CONSUMER.MSG.NEXT.ORDERS.billing": "take billing's orders",
    "$JS.ACK.ORDERS.billing.1.1.1.1.0": "acknowledge billing's orders",
    "$JS.API.STREAM.INFO.ORDERS": "ask about the stream",
    "$JS.API.STREAM.PURGE.ORDERS": "empty the stream",
    "$JS.API.STREAM.DELETE.ORDERS": "delete the stream",
    "$JS.API.CONSUMER.DELETE.ORDERS.shipping": "delete its consumer",
}
MUST_NOT_SUBSCRIBE = {
    "orders.*.*.paid": "watch paid events",
    "orders.*.*.placed": "watch placed orders past its consumer",
    "_INBOX.>": "watch answers to others",
    "_INBOX_billing.>": "watch answers to billing",
    ">": "watch everything",
}


@exercise(
    "9.1",
    title="a key for shipping",
    answer="function",
    expects="permissions with which shipping can do its work and nothing else",
    hint="It is billing's entry in LEAST with three other words: the event, the consumer (twice), the inbox's prefix.",
    within=30.0,
)
async def shipping_can_ship_and_nothing_else(mesh: Mesh, answer: Any) -> Verdict:
    """Give a server of the check's own the permissions, and try all that shipping must and must not do."""
    text = answer()
    if not isinstance(text, str):
        return not_yet(f"{type(text).__name__} was returned", "text in the servers' syntax")
    key = Key.new("user")
    async with await start_mesh(backend="local") as own:
        keeper = await orders_to_ship(own)
        try:
            await own.reload(users_config=f"{{ nkey: {key.public}, permissions: {{ {text} }} }}")
        except BadConfigError as err:
            return not_yet(f"the server did not understand it: {str(err).rpartition(': ')[2]}", "text as in LEAST")
        complaints: list[str] = []
        client = await enter(own, key.seed, complaints, inbox_prefix="_INBOX_shipping")
        return (
            await _cannot_work(client, keeper, complaints)
            or await _can_do_too_much(client, complaints)
            or correct("a service that is taken over can now do what it could do before, and no more")
        )


async def _cannot_work(client: Client, keeper: Client, complaints: list[str]) -> Verdict | None:
    orders = await client.jetstream().pull_subscribe_bind("shipping", stream="ORDERS")
    await flush_through(client)
    if complaints:
        return not_yet("shipping may not listen to its inbox", "an inbox for the orders that it asked for")
    try:
        [order] = await orders.fetch(1, timeout=2)
    except TimeoutError:
        return not_yet("shipping asked for an order and got none", "the order that waits in its consumer")
    await order.ack()
    await flush_through(client)
    if complaints or not await _acknowledged(keeper):
        return not_yet("shipping may not acknowledge its order", "an order acknowledged")
    await client.publish("orders.eu.000001.shipped", b"{}")
    await flush_through(client)
    return not_yet("shipping may not publish shipped events", "an event stored") if complaints else None


async def _acknowledged(keeper: Client) -> bool:
    """Whether all that shipping's consumer gave out is acknowledged, in time: the consumer takes an ack when it can."""

    async def none_is_out() -> bool:
        info = await retry(lambda: keeper.jetstream(timeout=3.0).consumer_info("ORDERS", "shipping"))
        return not info.num_ack_pending

    with contextlib.suppress(NotReadyError):
        return await eventually(none_is_out, within=ACKNOWLEDGED_WITHIN_S)
    return False


async def _can_do_too_much(client: Client, complaints: list[str]) -> Verdict | None:
    async def may(attempt: Awaitable[object]) -> bool:
        complaints.clear()
        await attempt
        await flush_through(client)
        return not complaints

    for subject, what in MUST_NOT_SUBSCRIBE.items():
        if await may(client.subscribe(subject)):
            return not_yet(f"shipping may also {what}: {subject}", "only what it needs")
    for subject, what in MUST_NOT_PUBLISH.items():
        if await may(client.publish(subject, b"")):
            return not_yet(f"shipping may also {what}: {subject}", "only what it needs")
    return None


# 9.2


@exercise(
    "9.2",
    title="change a key while orders flow",
    answer="async function",
    expects="a new key, the old one out, and no order lost",
    hint="Add, move, remove. For a moment the server must know both: entry(old[1]) and entry(new[1]), a line each.",
    within=40.0,
)
async def changes_a_key(mesh: Mesh, answer: Any) -> Verdict:
    """Let a shop publish without a pause while its key is changed, and look who can enter after that."""
    old, new = Key.new("user"), Key.new("user")
    async with await start_mesh(backend="local") as own:
        await orders_to_ship(own)
        await own.reload(users_config=_entry(old.public))
        shop = _Shop(own)
        await shop.move(old.seed)
        selling = asyncio.create_task(shop.sell())

        async def reload(text: str) -> None:
            await own.reload(users_config=text)
            # Who is cut off has to feel it: a move a millisecond later would come in time by chance.
            await shop.goes_on(SOME_ORDERS)

        try:
            pairs = (old.seed, old.public), (new.seed, new.public)
            await answer(reload, shop.move, _entry, *pairs)
            await shop.goes_on(SOME_ORDERS)
        except _RefusedError:
            return not_yet("the shop moved to the new key, and the server did not know it", "the new key first")
        finally:
            await cancel_and_join(selling)
        if shop.lost:
            return not_yet("the shop was cut off, and orders were lost", "a key that is valid until the shop has moved")
        if not await lets_in(own, new.seed):
            return not_yet("the new key is refused in the end", "that it is valid")
        if await lets_in(own, old.seed):
            return not_yet("the old key still lets in", "that it is refused")
        if shop.seed != new.seed:
            return not_yet("the shop still uses its old key", "that it moved")
    return correct("add, move, remove: two keys for a moment, and no gap")


def _entry(public: str) -> str:
    return f'{{ nkey: {public}, permissions: {{ publish: "orders.>", subscribe: "_INBOX.>" }} }}'


class _RefusedError(Exception):
    """The server refused the seed that the shop was to move to."""


class _Shop:
    """Publishes orders one after the other, with the key that it was given last."""

    def __init__(self, own: Mesh) -> None:
        self.own = own
        self.client: Client | None = None
        self.seed = ""
        self.tried = self.lost = 0
        self._between_orders = asyncio.Lock()

    async def move(self, seed: str) -> None:
        try:
            client = await enter(self.own, seed, [])
        except nats.errors.Error as err:
            raise _RefusedError from err
        async with self._between_orders:
            old, self.client, self.seed = self.client, client, seed
        if old is not None:
            await old.close()

    async def goes_on(self, orders: int) -> None:
        seen = self.tried
        await eventually(lambda: self.tried >= seen + orders, within=30.0)

    async def sell(self) -> None:
        while True:
            async with self._between_orders:
                assert self.client is not None  # noqa: S101 (for mypy: it moved before it sells)
                try:
                    await self.client.jetstream().publish("orders.eu.000001.placed", b"{}", timeout=5.0)
                except (nats.errors.Error, OSError):
                    self.lost += 1
                self.tried += 1
            await asyncio.sleep(0.002)  # the next customer


# 9.3

Connect = Callable[..., Awaitable[object]]


@exercise(
    "9.3",
    title="connect safely",
    answer="async function",
    expects="a client that checks the server, signs with its key, and hears complaints",
    hint="ssl.create_default_context takes the authority's certificate as cafile, and checks the server's name. "
    "nats.connect takes tls=, nkeys_seed_str= and error_cb=.",
    within=40.0,
)
async def connects_safely(mesh: Mesh, answer: Any) -> Verdict:
    """Let it connect to a server of the check's own, complain, and offer it an impostor."""
    key, authority = Key.new("user"), Authority("check 9.3")
    user = f'{{ nkey: {key.public}, permissions: {{ publish: "orders.>", subscribe: "_INBOX.>" }} }}'
    async with (
        await start_mesh(backend="local", tls=authority, users_config=user) as own,
        await start_mesh(backend="local", tls=Authority("impostor"), users_config=user) as impostor,
    ):
        trusted = str(authority.write(own.directory))
        complaints: list[str] = []

        async def complain(error: Exception) -> None:
            complaints.append(str(error))

        client = await answer(own.urls, trusted, key.seed, complain)
        if not isinstance(client, Client) or not client.is_connected:
            what = "a client that is not connected" if isinstance(client, Client) else f"{type(client).__name__}"
            return not_yet(f"{what} was returned", "a connected client")
        checks_the_name = client.ssl_context is not None and client.ssl_context.check_hostname
        try:
            await client.publish("forbidden", b"")
            await flush_through(client)
        finally:
            await client.close()
        if not any("forbidden" in complaint for complaint in complaints):
            return not_yet("the server refused a publish, and complain did not hear of it", "that it does")
        if await _fooled(answer, impostor, trusted, key.seed):
            return not_yet("it connected to a server that another authority certified", "that it refuses to")
        if not checks_the_name:
            return not_yet("whoever has a certificate of that authority could pose as the server", "its name checked")
    return correct("it knows whom it talks to, proves who it is, and hears when it is refused")


async def _fooled(answer: Connect, impostor: Mesh, trusted: str, seed: str) -> bool:
    """Whether a client connects to the impostor; one that keeps trying is not fooled, and is stopped."""

    async def ignore(error: Exception) -> None:
        """What the client says of a server that it should refuse is not looked at."""

    with contextlib.suppress(ssl.SSLError, OSError, nats.errors.Error):
        async with asyncio.timeout(REFUSED_WITHIN_S):
            client = await answer(impostor.urls, trusted, seed, ignore)
        if isinstance(client, Client):
            fooled = client.is_connected
            await client.close()
            return fooled
    return False
