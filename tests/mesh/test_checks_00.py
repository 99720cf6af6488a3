"""The exercises of notebook 00: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import re

import nats
import pytest
from exercise_cells import ExerciseCells, refused_side_by_side

from mesh_lab.notebook.exercises import check
from mesh_lab.orders import read_orders
from mesh_lab.servers.start import newest_mesh

CELLS = ExerciseCells("00_start_here", read_orders=read_orders)


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_cell_for_the_reader_is_not_attempted(mesh, number):
    assert await CELLS.untouched(number) == ["not attempted"]


@pytest.mark.parametrize("number", CELLS.numbers)
async def test_the_solution_in_the_notebook_is_correct(mesh, number):
    await CELLS.solved(number)


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


async def by_another_client(nc):
    return await (await newest_mesh().connect(name="mine")).subscribe("orders.eu.*.placed")


async def a_few_hundred(nc):
    sub = await nc.subscribe("orders.eu.*.placed")
    await sub.unsubscribe(limit=500)
    return sub


async def ended(nc):
    sub = await nc.subscribe("orders.eu.*.placed")
    await sub.unsubscribe()
    return sub


async def also_to_the_us(nc):
    await nc.subscribe("orders.us.*.placed", cb=ignore)
    return await nc.subscribe("orders.eu.*.placed")


async def the_first_again(nc, kept=[]):  # noqa: B006 - that is its mistake
    if not kept or kept[0]._conn.is_closed:
        kept[:] = [await nc.subscribe("orders.eu.*.placed")]
    return kept[0]


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
        (subscribing("orders.EU.*.placed"), r"orders\.EU\.000001\.placed arrived, too"),
        (subscribing("orders.eu.*.placed", cb=ignore), "the subscription hands its messages to a callback"),
        (one_of_them, "3 of the 14 orders placed in eu arrived"),
        (twice, "None was returned; expected the subscription"),
        (subscribing("orders.eu.*.placed", queue="listeners"), "a share of the 14 orders placed in eu arrived"),
        (
            subscribing("orders.*.*.placed", queue="listeners"),
            r"arrived, too; expected nothing but orders placed in eu",
        ),
        (subscribing("orders.eu.*.placed", pending_msgs_limit=10), "of the 14 orders placed in eu arrived"),
        (a_few_hundred, "486 of the 1067 orders placed in eu arrived; expected all of them"),
        (by_another_client, "the subscription is of another client, or has ended"),
        (ended, "the subscription is of another client, or has ended"),
        (also_to_the_us, r"it left a subscription to orders\.us"),
        (the_first_again, "the subscription is of another client, or has ended"),
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


KEPT = []


async def only_once(mesh):
    if not KEPT or KEPT[0].is_closed:
        KEPT[:] = [await mesh.connect(name="me", to="n2")]
    return KEPT[0]


def first_without_a_name():
    names = iter([None])

    async def connect_me(mesh):
        return await mesh.connect(name=next(names, "me"), to="n2")

    return connect_me


async def named_after_the_server(mesh):
    return await mesh.connect(name="me@n2", to="n2")


async def with_a_blank(mesh):
    return await mesh.connect(name="me ", to="n2")


async def leaves_one_more(mesh):
    KEPT.append(await mesh.connect(name="me", to="n2"))
    return await mesh.connect(name="me", to="n2")


async def to_the_last(mesh):
    return await nats.connect(**{**mesh.connect_options(), "servers": mesh.urls[-1:]}, name="me")


async def drained(mesh):
    client = await mesh.connect(name="me", to="n2")
    await client.drain()
    return client


@pytest.fixture
async def kept():
    yield
    for client in KEPT:
        await client.close()
    KEPT.clear()


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
        (only_once, "the client of an earlier call was returned; expected a new one each time"),
        (first_without_a_name(), "n2 knows your client as ''; expected 'me'"),
        (named_after_the_server, "n2 knows your client as 'me@n2'; expected 'me'"),
        (with_a_blank, "n2 knows your client as 'me '; expected 'me'"),
        (leaves_one_more, "it left a connection named 'me'; expected nothing left behind"),
        (to_the_last, "n2 lists none of your clients"),
        (drained, "the client that it returned is not connected"),
        (a_name, "str was returned"),
    ],
)
async def test_0_3_refuses(mesh, kept, answer, reason):
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


async def test_0_3_takes_a_client_that_was_asked_for_until_it_came_to_n2(mesh):
    async def until_it_is_there(mesh):
        while True:
            client = await mesh.connect(name="me")
            if client.connected_url.port == mesh.servers["n2"].port:
                return client
            await client.close()

    assert (await check("0.3", until_it_is_there)).state == "correct"


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
    news.append("back")
    return await mesh.connect(to=server, disconnected_cb=telling(news, "lost"))


async def three_at_the_end(mesh, server, news):
    return await mesh.connect(to=server, reconnected_cb=telling(news, "lost", "back", "hello"))


async def both_at_the_reconnection(mesh, server, news):
    return await mesh.connect(to=server, reconnected_cb=telling(news, "lost", "back"))


async def both_at_the_loss(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=telling(news, "lost", "back"))


async def the_other_way_round(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=telling(news, "back"), reconnected_cb=telling(news, "lost"))


async def in_other_words(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=telling(news, "Lost"), reconnected_cb=telling(news, "Back"))


async def at_the_end_of_all(mesh, server, news):
    return await mesh.connect(to=server, closed_cb=telling(news, "lost"), reconnected_cb=telling(news, "back"))


async def the_first_time_only(mesh, server, news):
    async def lost():
        if "lost" not in news:
            news.append("lost")

    return await mesh.connect(to=server, disconnected_cb=lost, reconnected_cb=telling(news, "back"))


async def one_list_for_all(mesh, server, news, lists=[]):  # noqa: B006 - that is its mistake
    lists.append(news)
    tell_lost, tell_back = telling(lists[0], "lost"), telling(lists[0], "back")
    return await mesh.connect(to=server, disconnected_cb=tell_lost, reconnected_cb=tell_back)


async def on_the_mesh_of_the_lesson(mesh, server, news):
    return await connect_and_tell(newest_mesh(), server, news)


async def wherever(mesh, server, news):
    return await mesh.connect(disconnected_cb=telling(news, "lost"), reconnected_cb=telling(news, "back"))


async def always_n2(mesh, server, news):
    return await connect_and_tell(mesh, "n2", news)


async def another(mesh, server, news):
    return await connect_and_tell(mesh, "n3", news)


async def not_async(mesh, server, news):
    return await mesh.connect(to=server, disconnected_cb=lambda: news.append("lost"))


async def keeps_it(mesh, server, news):
    await (await connect_and_tell(mesh, server, news)).close()


ELSEWHERE = "the client is not connected to the server that it was given"


# Those that lose a server of their own, a few side by side.
@pytest.mark.parametrize(
    "wrong",
    [
        [
            # Whether its own callback came before it gave up is chance.
            (gives_up, r"the client gave up, and news is \[('lost')?\]; expected one that connects again"),
            (half, r"the server died, and news is \['lost'\]; expected \['lost', 'back'\]"),
            (three_at_the_end, r"the server died, and news is \['lost', 'back', 'hello'\]; expected"),
        ],
        [
            (
                both_at_the_reconnection,
                r"no server was alive, and news was \[\]; expected \['lost'\], before the client",
            ),
            (both_at_the_loss, r"no server was alive, and news was \['lost', 'back'\]; expected \['lost'\], before"),
            (the_other_way_round, r"the server died, and news is \['back', 'lost'\]; expected \['lost', 'back'\]"),
        ],
        [
            (in_other_words, r"the server died, and news is \['Lost', 'Back'\]; expected \['lost', 'back'\]"),
            (the_first_time_only, "a client lost its server once more, and its news does not tell each time; expected"),
            (at_the_end_of_all, r"the server died, and news is \['back'\]; expected \['lost', 'back'\]"),
            (one_list_for_all, r"the server died, and news is \[\]; expected \['lost', 'back'\]"),
        ],
    ],
)
async def test_0_4_refuses_on_servers_that_die(mesh, wrong):
    verdicts = await refused_side_by_side("0.4", *(answer for answer, _ in wrong))
    for (_, reason), verdict in zip(wrong, verdicts, strict=True):
        assert re.match(f"not yet: .*{reason}", verdict), verdict


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (at_once, r"before anything happened, news was \['back'\]; expected an empty list"),
        (another, ELSEWHERE),
        (always_n2, ELSEWHERE),
        (wherever, ELSEWHERE),
        (on_the_mesh_of_the_lesson, ELSEWHERE),
        (not_async, "it raised InvalidCallbackTypeError"),
        (keeps_it, "None was returned; expected the client"),
    ],
)
async def test_0_4_refuses(mesh, answer, reason):
    await refused("0.4", answer, reason)


async def test_0_4_takes_plain_nats_connect(mesh):
    async def plainly(mesh, server, news):
        tell = {"disconnected_cb": telling(news, "lost"), "reconnected_cb": telling(news, "back")}
        return await nats.connect(
            **mesh.connect_options(to=server), dont_randomize=True, reconnect_time_wait=0.1, **tell
        )

    assert (await check("0.4", plainly)).state == "correct"


async def test_0_4_takes_an_answer_that_watches_its_client_until_it_is_closed(mesh):
    async def watches(mesh, server, news):
        client = await mesh.connect(to=server)

        async def watch():
            was = True
            while not client.is_closed:
                if client.is_connected is not was:
                    was = client.is_connected
                    news.append("back" if was else "lost")
                await asyncio.sleep(0)  # at each turn of the loop: a client may be back after a few

        client.watching = asyncio.create_task(watch())
        return client

    assert (await check("0.4", watches)).state == "correct"
