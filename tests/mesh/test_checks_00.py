"""The exercises of notebook 00: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import re
import weakref

import nats
import pytest
from exercise_cells import ExerciseCells

from mesh_lab.notebook.exercises import check
from mesh_lab.orders import read_orders
from mesh_lab.patterns import eventually
from mesh_lab.servers import start

CELLS = ExerciseCells("00_start_here", read_orders=read_orders)


@pytest.fixture(scope="module")
def _breakable_mesh():
    # Exercise 0.4 kills a server, so these tests have three of their own.
    mesh = asyncio.run(start.start_mesh(servers=3))
    yield mesh
    asyncio.run(mesh.close())


@pytest.fixture
def mesh(_breakable_mesh, monkeypatch):
    monkeypatch.setattr(start, "_started", [weakref.ref(_breakable_mesh)])
    return _breakable_mesh


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct(mesh, number):
    [verdict] = await CELLS.run(CELLS.source(number, "solution"))
    assert verdict.startswith("correct: ")
    await eventually(mesh.is_healthy, within=20.0)


async def test_a_check_leaves_nothing_behind_that_spoils_the_next_one(mesh):
    for number in CELLS.numbers[:3]:
        first, second = [await CELLS.run(CELLS.source(number, "solution")) for _ in range(2)]
        assert first == second


async def refused(number: str, answer: object, reason: str) -> None:
    verdict = repr(await check(number, answer))
    assert re.match(f"not yet: .*{reason}", verdict), verdict


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("orders.*.000010.paid", r"'orders\.\*\.000010\.paid' has a wildcard"),
        ("orders.eu.>", "has a wildcard"),
        ("orders.000010.paid", r"has 3 words; expected 4 words"),
        ("order.us.000010.paid", "word 1 of .* is 'order'; expected 'orders'"),
        ("orders.eu.000010.paid", "word 2 of .* is 'eu'; expected the region in which it was placed"),
        ("orders.us.10.paid", "word 3 of .* is '10'; expected its id"),
        ("orders.us.000009.paid", "word 3 of .* is '000009'; expected its id"),
        ("orders.us.000010.placed", "word 4 of .* is 'placed'; expected the event"),
        ("orders.us.000010.Paid", "word 4 of .* is 'Paid'; expected the event"),
        ("", "'' has 1 word; expected 4 words"),
        (None, "the answer is None; expected a text"),
    ],
    ids=repr,
)
async def test_0_1_refuses(mesh, answer, reason):
    await refused("0.1", answer, reason)


def subscribing(subject, **options):
    async def listen(nc):
        return await nc.subscribe(subject, **options)

    return listen


async def twice(nc):
    await nc.subscribe("orders.eu.*.placed")
    await nc.subscribe("orders.us.*.placed")


async def one_of_them(nc):
    return await nc.subscribe("orders.eu.*.placed", max_msgs=3)


async def ignore(msg):
    pass


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (subscribing("orders.eu.>"), r"orders\.eu\.\d+\.paid arrived, too; expected nothing but orders placed in eu"),
        (subscribing("orders.*.*.placed"), r"orders\.us\.\d+\.placed arrived, too"),
        (subscribing("orders.eu.*.*"), r"orders\.eu\.\d+\.paid arrived, too"),
        (subscribing("orders.eu.placed"), r"orders\.eu\.placed arrived, too"),
        (subscribing("*.eu.*.placed"), r"returns\.eu\.000001\.placed arrived, too"),
        (subscribing("orders.us.*.placed"), r"orders\.us\.\d+\.placed arrived, too"),
        (subscribing("orders.eu.000001.placed"), "1 of the 14 orders placed in eu arrived; expected all of them"),
        (subscribing("orders.EU.*.placed"), "0 of the 14 orders placed in eu arrived"),
        (subscribing("orders.eu.*.placed", cb=ignore), "the subscription hands its messages to a callback"),
        (one_of_them, "3 of the 14 orders placed in eu arrived"),
        (twice, "None was returned; expected the subscription"),
    ],
)
async def test_0_2_refuses(mesh, answer, reason):
    await refused("0.2", answer, reason)


async def unnamed(mesh):
    return await mesh.connect(to="n2")


async def misnamed(mesh):
    return await mesh.connect(name="Me", to="n2")


async def elsewhere(mesh):
    return await mesh.connect(name="me", to="n1")


async def nowhere(mesh):
    await (await mesh.connect(name="me", to="n2")).close()


async def closed(mesh):
    client = await mesh.connect(name="me", to="n2")
    await client.close()
    return client


async def a_name(mesh):
    return "me"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (unnamed, "n2 knows your client as ''; expected 'me'"),
        (misnamed, "n2 knows your client as 'Me'; expected 'me'"),
        (elsewhere, "n2 lists none of your clients; expected each of them connected to n2"),
        (nowhere, "None was returned; expected the client that it connected"),
        (closed, "the client that it returned is not connected"),
        (a_name, "str was returned"),
    ],
)
async def test_0_3_refuses(mesh, answer, reason):
    await refused("0.3", answer, reason)


async def test_0_3_refuses_a_client_that_is_there_by_chance(mesh):
    calls = iter(range(100))

    async def now_and_then(mesh):
        return await mesh.connect(name="me", to="n2" if next(calls) % 2 else "n3")

    await refused("0.3", now_and_then, "of 8 clients, some were connected to another server")


async def test_0_3_takes_plain_nats_connect(mesh):
    async def plainly(mesh):
        return await nats.connect(**mesh.connect_options(to="n2"), name="me", dont_randomize=True)

    assert (await check("0.3", plainly)).state == "correct"


def telling(news, *words):
    async def tell():
        news.extend(words)

    return tell


async def connect_and_tell(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=telling(news, "lost"), reconnected_cb=telling(news, "back"))


async def gives_up(mesh, server, news):
    return await mesh.connect(to=server, allow_reconnect=False, disconnected_cb=telling(news, "lost"))


async def half(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=telling(news, "lost"))


async def at_once(mesh, server, news):
    client = await mesh.connect(to=server, disconnected_cb=telling(news, "lost"))
    news.append("back")
    return client


async def both_at_the_end(mesh, server, news):
    return await mesh.connect(to=server, reconnected_cb=telling(news, "lost", "back", "hello"))


async def another(mesh, server, news):
    return await connect_and_tell(mesh, "n3", news)


async def not_async(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=lambda: news.append("lost"))


async def keeps_it(mesh, server, news):
    await (await connect_and_tell(mesh, server, news)).close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (gives_up, r"the client gave up, and news is \['lost'\]; expected one that connects again"),
        (half, r"the server died, and news is \['lost'\]; expected \['lost', 'back'\]"),
        (both_at_the_end, r"the server died, and news is \['lost', 'back', 'hello'\]; expected"),
        (at_once, r"before anything happened, news was \['back'\]; expected an empty list"),
        (another, "the client is not connected to the server that it was given"),
        (not_async, "it raised InvalidCallbackTypeError"),
        (keeps_it, "None was returned; expected the client"),
    ],
)
async def test_0_4_refuses(mesh, answer, reason):
    await refused("0.4", answer, reason)
    await eventually(mesh.is_healthy, within=20.0)
