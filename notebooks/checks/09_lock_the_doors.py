"""Checks of notebook 09: least privilege for a service, a key changed without a gap, a connection that is safe."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.js.api import ConsumerConfig

from mesh_lab import Mesh
from mesh_lab.errors import BadConfigError
from mesh_lab.notebook.exercises import NotYet, Trial, exercise
from mesh_lab.patterns import cancel_and_join, eventually, flush_through, retry, wait_routable
from mesh_lab.security import Authority, Key

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
async def shipping_can_ship_and_nothing_else(trial: Trial, answer: Any) -> str:
    """Give a server of the check's own the permissions, and try all that shipping must and must not do."""
    permissions = answer()
    trial.kind(permissions, str, "text in the servers' syntax")
    key, own = Key.new("user"), await trial.own_mesh()
    admin = await _store_an_order(trial, own)
    try:
        await own.reload(users_config=f"{{ nkey: {key.public}, permissions: {{ {permissions} }} }}")
    except BadConfigError as err:
        seen = f"the server did not understand it: {str(err).rpartition(': ')[2]}"
        raise NotYet(seen, "text as in LEAST") from err
    client = await trial.enter(own, nkeys_seed_str=key.seed, inbox_prefix="_INBOX_shipping")
    await _ship(trial, client, admin)
    for subject, deed in MUST_NOT_SUBSCRIBE.items():
        await _expect_refusal(trial, client, client.subscribe(subject), f"{deed}: {subject}")
    for subject, deed in MUST_NOT_PUBLISH.items():
        await _expect_refusal(trial, client, client.publish(subject, b""), f"{deed}: {subject}")
    return "a service that is taken over can now do what it could do before, and no more"


async def _store_an_order(trial: Trial, own: Mesh) -> Client:
    """Store an order for each of two consumers of a stream ORDERS, and return a client that may do anything."""
    admin = await trial.client(on=own)
    js = await trial.stream(admin, "ORDERS", subjects=["orders.>"])
    for name in ("billing", "shipping"):
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name=name, filter_subject="orders.*.*.placed"))
        await wait_routable(admin, "ORDERS", name)
    await js.publish("orders.eu.000001.placed", b"{}")
    return admin


async def _ship(trial: Trial, client: Client, admin: Client) -> None:
    """Do the work of shipping: take an order, acknowledge it, publish an event."""
    orders = trial.own(await client.jetstream().pull_subscribe_bind("shipping", stream="ORDERS"))
    if await trial.complaints(client):
        raise NotYet("shipping may not listen to its inbox", "an inbox for the orders that it asked for")
    try:
        [order] = await orders.fetch(1, timeout=2)
    except TimeoutError as err:
        raise NotYet("shipping asked for an order and got none", "the order that waits in its consumer") from err
    await order.ack()

    async def is_acknowledged() -> bool:
        info = await retry(lambda: admin.jetstream(timeout=3.0).consumer_info("ORDERS", "shipping"))
        return not info.num_ack_pending

    refused = "shipping may not acknowledge its order", "an order acknowledged"
    if await trial.complaints(client):
        raise NotYet(*refused)
    await trial.soon(is_acknowledged, *refused, within=ACKNOWLEDGED_WITHIN_S)
    await client.publish("orders.eu.000001.shipped", b"{}")
    if await trial.complaints(client):
        raise NotYet("shipping may not publish shipped events", "an event stored")


async def _expect_refusal(trial: Trial, client: Client, attempt: Awaitable[object], deed: str) -> None:
    await attempt
    if not await trial.complaints(client):
        raise NotYet(f"shipping may also {deed}", "only what it needs")


# 9.2


@exercise(
    "9.2",
    title="change a key while orders flow",
    answer="async function",
    expects="a new key, the old one out, and no order lost",
    hint="Add, move, remove. For a moment the server must know both: entry(old[1]) and entry(new[1]), a line each.",
    within=40.0,
)
async def changes_a_key(trial: Trial, answer: Any) -> str:
    """Let a shop publish without a pause while its key is changed, and look which keys are valid after that."""
    old, new = Key.new("user"), Key.new("user")
    own = await trial.own_mesh()
    await _store_an_order(trial, own)
    await own.reload(users_config=_entry(old.public))
    shop = _Shop(trial, own)
    await shop.move(old.seed)
    selling = asyncio.create_task(shop.sell())

    async def reload(text: str) -> None:
        await own.reload(users_config=text)
        # A shop that is cut off has to notice it: a move a millisecond later would come in time by chance.
        await shop.wait_for_more(SOME_ORDERS)

    try:
        await answer(reload, shop.move, _entry, (old.seed, old.public), (new.seed, new.public))
        await shop.wait_for_more(SOME_ORDERS)
    except _RefusedError as err:
        raise NotYet("the shop moved to the new key, and the server did not know it", "the new key first") from err
    finally:
        await cancel_and_join(selling)
    if shop.lost:
        raise NotYet("the shop was cut off, and orders were lost", "a key that is valid until the shop has moved")
    if not await _is_valid(trial, own, new):
        raise NotYet("the new key is refused in the end", "that it is valid")
    if await _is_valid(trial, own, old):
        raise NotYet("the old key still lets in", "that it is refused")
    if shop.seed != new.seed:
        raise NotYet("the shop still uses its old key", "that it moved")
    return "add, move, remove: two keys for a moment, and no gap"


def _entry(public: str) -> str:
    return f'{{ nkey: {public}, permissions: {{ publish: "orders.>", subscribe: "_INBOX.>" }} }}'


async def _is_valid(trial: Trial, own: Mesh, key: Key) -> bool:
    try:
        await trial.enter(own, nkeys_seed_str=key.seed)
    except nats.errors.Error:
        return False
    return True


class _RefusedError(Exception):
    """The server refused the seed that the shop was to move to."""


class _Shop:
    """Publishes orders one after the other, with the key that it was given last."""

    def __init__(self, trial: Trial, own: Mesh) -> None:
        self.client: Client | None = None
        self.seed = ""
        self.tried = self.lost = 0
        self._trial, self._own = trial, own
        self._between_orders = asyncio.Lock()

    async def move(self, seed: str) -> None:
        try:
            client = await self._trial.enter(self._own, nkeys_seed_str=seed)
        except nats.errors.Error as err:
            raise _RefusedError from err
        async with self._between_orders:
            old, self.client, self.seed = self.client, client, seed
        if old is not None:
            await old.close()

    async def wait_for_more(self, orders: int) -> None:
        before = self.tried
        await eventually(lambda: self.tried >= before + orders, within=30.0)

    async def sell(self) -> None:
        while True:
            async with self._between_orders:
                assert self.client is not None  # for mypy: it moved before it sells
                try:
                    await self.client.jetstream().publish("orders.eu.000001.placed", b"{}", timeout=5.0)
                except (nats.errors.Error, OSError):
                    self.lost += 1
                self.tried += 1
            await asyncio.sleep(0.002)  # pacing: the next customer


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
async def connects_safely(trial: Trial, answer: Any) -> str:
    """Let it connect to a server of the check's own, complain, and offer it an impostor."""
    key, authority = Key.new("user"), Authority("check 9.3")
    user = f'{{ nkey: {key.public}, permissions: {{ publish: "orders.>", subscribe: "_INBOX.>" }} }}'
    own = await trial.own_mesh(tls=authority, users_config=user)
    impostor = await trial.own_mesh(tls=Authority("impostor"), users_config=user)
    trusted = str(authority.write(own.directory))
    complaints: list[str] = []

    async def complain(error: Exception) -> None:
        complaints.append(str(error))

    client = await answer(own.urls, trusted, key.seed, complain)
    trial.kind(client, Client, "a connected client")
    if not client.is_connected:
        raise NotYet("a client that is not connected was returned", "a connected client")
    checks_the_name = client.ssl_context is not None and client.ssl_context.check_hostname
    try:
        await client.publish("forbidden", b"")
        await flush_through(client)
    finally:
        await client.close()
    if not any("forbidden" in complaint for complaint in complaints):
        raise NotYet("the server refused a publish, and complain did not hear of it", "that it does")
    if await _connects_to(answer, impostor, trusted, key.seed):
        raise NotYet("it connected to a server that another authority certified", "that it refuses to")
    if not checks_the_name:
        raise NotYet("whoever has a certificate of that authority could pose as the server", "its name checked")
    return "it knows whom it talks to, proves who it is, and hears when it is refused"


async def _connects_to(answer: Connect, impostor: Mesh, trusted: str, seed: str) -> bool:
    """Return whether a client connects to the impostor; one that keeps trying does not, and is stopped."""

    async def ignore(error: Exception) -> None:
        """Ignore what the client says of a server that it should refuse."""

    with contextlib.suppress(ssl.SSLError, OSError, nats.errors.Error):
        async with asyncio.timeout(REFUSED_WITHIN_S):
            client = await answer(impostor.urls, trusted, seed, ignore)
        if isinstance(client, Client):
            connected = client.is_connected
            await client.close()
            return connected
    return False
