"""Checks of notebook 10: least privilege for a service, a key changed without a gap, a connection that is safe."""

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

REFUSED_WITHIN_S = 5.0
ACKNOWLEDGED_WITHIN_S = 3.0
CONNECTED_WITHIN_S = 3.0
SOME_ORDERS = 20


# 10.1

EVENTS = ("orders.eu.000001.shipped", "orders.us.000010.shipped", "orders.asia.069659.shipped")
API = "$JS.API"
MUST_NOT_PUBLISH = {
    "orders.eu.000001.placed": "publish placed orders",
    "orders.eu.000001.paid": "publish paid events",
    "orders.eu.000001.shipped.late": "publish events below shipped ones",
    "orders.eu.shipped": "publish events of no order",
    "returns.eu.000001.shipped": "publish beside the orders",
    "anything": "publish anything",
    "_INBOX_billing.1": "answer for others",
    "_INBOX.1": "answer for others",
    f"{API}.CONSUMER.MSG.NEXT.ORDERS.billing": "take billing's orders",
    f"{API}.CONSUMER.MSG.NEXT.RETURNS.shipping": "take from another stream",
    "$JS.ACK.ORDERS.billing.1.1.1.1.0": "acknowledge billing's orders",
    "$JS.ACK.RETURNS.shipping.1.1.1.1.0": "acknowledge in another stream",
    f"{API}.CONSUMER.INFO.ORDERS.shipping": "ask about its consumer",
    f"{API}.CONSUMER.INFO.ORDERS.billing": "ask about billing's consumer",
    f"{API}.CONSUMER.NAMES.ORDERS": "list the consumers",
    f"{API}.CONSUMER.LIST.ORDERS": "list the consumers",
    f"{API}.CONSUMER.CREATE.ORDERS": "create a consumer",
    f"{API}.CONSUMER.CREATE.ORDERS.more": "create a consumer",
    f"{API}.CONSUMER.CREATE.ORDERS.shipping.orders.>": "change its consumer",
    f"{API}.CONSUMER.DURABLE.CREATE.ORDERS.more": "create a consumer",
    f"{API}.CONSUMER.PAUSE.ORDERS.shipping": "pause its consumer",
    f"{API}.CONSUMER.DELETE.ORDERS.shipping": "delete its consumer",
    f"{API}.CONSUMER.DELETE.ORDERS.billing": "delete billing's consumer",
    f"{API}.STREAM.INFO.ORDERS": "ask about the stream",
    f"{API}.STREAM.NAMES": "list the streams",
    f"{API}.STREAM.LIST": "list the streams",
    f"{API}.STREAM.MSG.GET.ORDERS": "read orders past its consumer",
    f"{API}.DIRECT.GET.ORDERS": "read orders past its consumer",
    f"{API}.DIRECT.GET.ORDERS.orders.eu.000001.placed": "read orders past its consumer",
    f"{API}.STREAM.MSG.DELETE.ORDERS": "delete an order",
    f"{API}.STREAM.CREATE.MORE": "create a stream",
    f"{API}.STREAM.UPDATE.ORDERS": "change the stream",
    f"{API}.STREAM.PURGE.ORDERS": "empty the stream",
    f"{API}.STREAM.SNAPSHOT.ORDERS": "copy the stream",
    f"{API}.STREAM.DELETE.ORDERS": "delete the stream",
    f"{API}.INFO": "ask about the account",
    "$KV.prices.cd": "write into a bucket",
}
MUST_NOT_SUBSCRIBE = {
    "orders.*.*.paid": "watch paid events",
    "orders.*.*.placed": "watch placed orders past its consumer",
    "orders.eu.000001.shipped": "watch shipped events",
    "_INBOX.>": "watch answers to others",
    "_INBOX_billing.>": "watch answers to billing",
    "$JS.ACK.>": "watch acknowledgements",
    "$JS.EVENT.>": "watch JetStream's events",
    "anything": "watch anything",
    ">": "watch everything",
}


@exercise(
    "10.1",
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
    admin = await _store_orders(trial, own)
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


async def _store_orders(trial: Trial, own: Mesh) -> Client:
    """Store orders for each of two consumers of a stream ORDERS, and return a client that may do anything."""
    admin = await trial.client(on=own)
    js = await trial.stream(admin, "ORDERS", subjects=["orders.>"])
    for name in ("billing", "shipping"):
        await js.add_consumer("ORDERS", ConsumerConfig(durable_name=name, filter_subject="orders.*.*.placed"))
        await wait_routable(admin, "ORDERS", name)
    for event in EVENTS:
        await js.publish(event.replace("shipped", "placed"), b"{}")
    return admin


async def _ship(trial: Trial, client: Client, admin: Client) -> None:
    """Do the work of shipping: take orders, give one back and take it again, acknowledge, publish events."""
    orders = trial.own(await client.jetstream().pull_subscribe_bind("shipping", stream="ORDERS"))
    if await trial.complaints(client):
        raise NotYet("shipping may not listen to its inbox", "an inbox for the orders that it asked for")
    try:
        [back, *others] = await orders.fetch(len(EVENTS), timeout=2)
    except TimeoutError as err:
        raise NotYet("shipping asked for an order and got none", "the order that waits in its consumer") from err
    refused = "shipping may not acknowledge its order", "an order acknowledged"
    await back.nak()
    if await trial.complaints(client):
        raise NotYet(*refused)
    for order in (*others, *await orders.fetch(1, timeout=2)):
        await order.ack()

    async def is_acknowledged() -> bool:
        info = await retry(lambda: admin.jetstream(timeout=3.0).consumer_info("ORDERS", "shipping"))
        return not info.num_ack_pending

    if await trial.complaints(client):
        raise NotYet("shipping may not acknowledge an order that came a second time", "an order acknowledged")
    await trial.soon(is_acknowledged, *refused, within=ACKNOWLEDGED_WITHIN_S)
    for event in EVENTS:
        await client.publish(event, b"{}")
        if await trial.complaints(client):
            raise NotYet(f"shipping may not publish shipped events: {event}", "an event stored")
    try:
        await client.jetstream().publish(EVENTS[0], b"{}", timeout=2)
    except nats.errors.TimeoutError as err:
        seen = "shipping published an event, and may not hear that it is stored"
        raise NotYet(seen, "all answers below its inbox prefix heard") from err


async def _expect_refusal(trial: Trial, client: Client, attempt: Awaitable[object], deed: str) -> None:
    await attempt
    if not await trial.complaints(client):
        raise NotYet(f"shipping may also {deed}", "only what it needs")


# 10.2


@exercise(
    "10.2",
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
    await _store_orders(trial, own)
    await own.reload(users_config=_entry(old.public))
    shop = _Shop(trial, own)
    await shop.move_to(old.seed)
    selling = asyncio.create_task(shop.sell())
    publics = {old.seed: ("its old key", old.public), new.seed: ("the new key", new.public)}
    texts = [""]

    async def reload(text: str) -> None:
        await asyncio.sleep(0)  # a move that was begun before, and not waited for, has begun then
        if shop.moving:
            seen = "the servers were given other users while the shop was still moving"
            raise NotYet(seen, "that a move is waited for")
        used, public = publics.get(shop.seed, ("a key", ""))
        cuts_off = public not in text
        await own.reload(users_config=text)
        texts.append(text)
        # A shop that is cut off has to notice it: a move a millisecond later would come in time by chance.
        await shop.wait_for_more(SOME_ORDERS)
        if shop.lost and cuts_off:
            seen = f"the servers were given users without {used}, which the shop used, and orders were lost"
            raise NotYet(seen, "a key that is valid until the shop has moved")

    async def move(seed: str) -> None:
        shop.moving = True
        try:
            await shop.move_to(seed)
        finally:
            shop.moving = False

    try:
        await answer(reload, move, _entry, (old.seed, old.public), (new.seed, new.public))
        await shop.wait_for_more(SOME_ORDERS)
    except _RefusedError as err:
        what = publics.get(err.seed, ("a seed of its own", ""))[0]
        seen = f"the shop moved to {what}, and the server did not know it"
        raise NotYet(seen, "the new key first" if err.seed == new.seed else "a move to the new key") from err
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
    if texts[-1].replace(_entry(new.public), "", 1).strip():
        raise NotYet("in the end the servers know more users than entry(new[1])", "only the new key")
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

    def __init__(self, seed: str) -> None:
        super().__init__("the server refused the seed")
        self.seed = seed


class _Shop:
    """Publishes orders one after the other, with the key that it was given last."""

    def __init__(self, trial: Trial, own: Mesh) -> None:
        self.client: Client | None = None
        self.seed = ""
        self.tried = self.lost = 0
        self.moving = False
        self._trial, self._own = trial, own
        self._between_orders = asyncio.Lock()

    async def move_to(self, seed: str) -> None:
        try:
            client = await self._trial.enter(self._own, nkeys_seed_str=seed)
        except nats.errors.Error as err:
            raise _RefusedError(seed) from err
        async with self._between_orders:
            old, self.client, self.seed = self.client, client, seed
        if old is not None:
            await old.close()

    async def wait_for_more(self, orders: int) -> None:
        before = self.tried
        await eventually(lambda: self.lost or self.tried >= before + orders, within=30.0)

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


# 10.3

Connect = Callable[..., Awaitable[object]]


@exercise(
    "10.3",
    title="connect safely",
    answer="async function",
    expects="a client that checks the server, signs with its key, and hears complaints",
    hint="ssl.create_default_context takes the authority's certificate as cafile, and checks the server's name. "
    "nats.connect takes tls=, nkeys_seed_str= and error_cb=.",
    within=40.0,
)
async def connects_safely(trial: Trial, answer: Any) -> str:
    """Let it connect to a server of the check's own, complain, and offer it an impostor and another name."""
    key, authority = Key.new("user"), Authority("check 10.3")
    user = f'{{ nkey: {key.public}, permissions: {{ publish: "orders.>", subscribe: "_INBOX.>" }} }}'
    own = await trial.own_mesh(tls=authority, users_config=user)
    trusted = str(authority.write(own.directory))
    await _expect_a_client(trial, own, lambda complain: answer(own.urls, trusted, key.seed, complain))
    second = "it left a second connection open", "the one that it returned, and no other"
    await trial.soon(lambda: not _logins(own, key, still_there=True), *second)
    impostor = await trial.own_mesh(tls=Authority("impostor"), users_config=user)
    # The same server under a name that its certificate does not have.
    renamed = [url.replace("127.0.0.1", OTHER_NAME) for url in own.urls]
    to_impostor, to_other_name = await asyncio.gather(
        _connects(answer, impostor, impostor.urls, trusted, key), _connects(answer, own, renamed, trusted, key)
    )
    if to_impostor:
        raise NotYet("it connected to a server that another authority certified", "that it refuses to")
    if to_other_name:
        raise NotYet("whoever has a certificate of that authority could pose as the server", "its name checked")
    return "it knows whom it talks to, proves who it is, and hears when it is refused"


OTHER_NAME = "127.1"  # to resolvers the same address, and no name in the certificate
SUBJECTS = ("forbidden.publish", "forbidden.subscribe")


async def _expect_a_client(trial: Trial, own: Mesh, connect: Callable[[Any], Awaitable[object]]) -> None:
    complaints: list[str] = []

    async def complain(error: Exception) -> None:
        complaints.append(str(error))

    def seen() -> str:
        heard = f", and complain heard: {complaints[-1].partition(' (_ssl')[0]}" if complaints else ""
        return f"in {CONNECTED_WITHIN_S:g} s it did not connect to a server that the authority certified{heard}"

    try:
        client = await trial.returns(connect(complain), "", "", within=CONNECTED_WITHIN_S)
    except NotYet as err:
        raise NotYet(seen(), "a connected client, which trusts the certificate at the path authority") from err
    trial.kind(client, Client, "a connected client")
    assert isinstance(client, Client)  # for mypy
    try:
        if not client.is_connected:
            raise NotYet("a client that is not connected was returned", "a connected client")
        complaints.clear()  # of what it tried on its way
        await client.publish(SUBJECTS[0], b"")
        await client.subscribe(SUBJECTS[1])
        await flush_through(client)
    finally:
        await client.close()
    for subject in SUBJECTS:
        if not any(subject in complaint for complaint in complaints):
            what = subject.partition(".")[2]
            raise NotYet(f"the server refused a {what}, and complain did not hear of it", "that it does")


def _logins(mesh: Mesh, key: Key, *, still_there: bool) -> int:
    """Return how many connections were let in by a key, or are in now."""
    monitors = [server.monitor for server in mesh.servers.values() if server.monitor is not None]
    state = "open" if still_there else "any"
    found = [one for monitor in monitors for one in monitor.connz(f"state={state}&auth=1")["connections"]]
    return sum(key.public in (one.get("nkey"), one.get("authorized_user")) for one in found)


async def _connects(answer: Connect, mesh: Mesh, urls: list[str], trusted: str, key: Key) -> bool:
    """Return whether the server lets a client in; one that keeps trying it does not, and is stopped."""

    async def ignore(error: Exception) -> None:
        """Ignore what the client says of a server that it should refuse."""

    before = _logins(mesh, key, still_there=False)
    with contextlib.suppress(ssl.SSLError, OSError, nats.errors.Error):
        async with asyncio.timeout(REFUSED_WITHIN_S):
            client = await answer(urls, trusted, key.seed, ignore)
        if isinstance(client, Client):
            await client.close()
    return _logins(mesh, key, still_there=False) > before
