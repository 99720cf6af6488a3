"""The exercises of notebook 12: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import contextlib
import datetime
import json
from collections import Counter, defaultdict

import nats.errors
import nats.js.errors
import pytest
from exercise_cells import ExerciseCells, accepted, refused
from nats.js.api import ConsumerConfig

CELLS = ExerciseCells("12_watch_the_mesh", json=json, suppress=contextlib.suppress)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def finding(*, which=lambda monitors: monitors, idle=False, least=False, by="pending_bytes", query="sort=pending"):
    def slowest(monitors):
        clients = [client for monitor in which(monitors) for client in monitor.connz(query)["connections"]]
        if not clients:
            return None
        worst = (min if least else max)(clients, key=lambda client: client[by])
        return worst["name"] if worst["pending_bytes"] or idle else None

    return slowest


def by_name(monitors, *, add=False):
    pending = defaultdict(int)
    for monitor in monitors:
        for client in monitor.connz("sort=pending")["connections"]:
            pending[client["name"]] = client["pending_bytes"] + add * pending[client["name"]]
    worst = max(pending, key=pending.get, default=None)
    return worst if worst and pending[worst] else None


def above(threshold):
    def slowest(monitors):
        clients = [client for monitor in monitors for client in monitor.connz("sort=pending")["connections"]]
        clients = [client for client in clients if client["pending_bytes"] > threshold]
        return max(clients, key=lambda client: client["pending_bytes"])["name"] if clients else None

    return slowest


def as_text(monitors):
    clients = [(str(c["pending_bytes"]), c["name"]) for m in monitors for c in m.connz("sort=pending")["connections"]]
    many, name = max(clients, default=("0", None))
    return name if many != "0" else None


def in_ascii(monitors):
    name = finding()(monitors)
    return name.encode("ascii", "replace").decode() if name else name


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(which=lambda monitors: monitors[:1]), "the slow one sits on the second, and None was returned"),
        (finding(which=lambda monitors: monitors[-1:]), "the slow one sits on the first"),
        (finding(which=lambda monitors: monitors[::2]), "the slow one sits on the second, and None was returned"),
        (finding(which=lambda monitors: {monitors[0], monitors[-1]}), "of three servers, the slow one sits on the se"),
        (finding(least=True), "the slow one sits on the second"),
        (finding(idle=True), "nobody has anything pending, and 'shop' was returned; expected None"),
        (finding(by="out_bytes"), "the slow one sits on the second"),
        (finding(query=""), "a server has 1,065 clients, and the slow one came last, and None was returned"),
        (finding(query="limit=1"), "'report' was returned; expected 'dashboard'"),
        (finding(query="sort=pending&state=all"), "the slow one has left, and 'report' was returned; expected 'till'"),
        (finding(query="sort=pending_bytes"), "it raised ValueError: invalid sorting option: pending_bytes"),
        (by_name, "of two clients named worker, one has most pending and the other least"),
        (lambda monitors: by_name(monitors, add=True), "600 bytes are pending for each of two clients named worker"),
        (above(1), "one byte is pending for till, and None was"),
        (as_text, "900 bytes are pending for stock and 10,000 for zoë, and 'stock' was returned"),
        (in_ascii, "'zo?' was returned; expected 'zoë'"),
        (
            lambda monitors: monitors[0].connz("sort=pending")["connections"][0]["name"],
            "the slow one sits on the second",
        ),
        (lambda monitors: max((c["name"] for m in monitors for c in m.connz()["connections"]), default=None), "'till'"),
        (lambda monitors: finding()(monitors) and None, "None was returned; expected 'dashboard'"),
        (lambda monitors: [finding()(monitors)], "['dashboard'] was returned"),
    ],
    ids=[
        "the first server", "the last server", "every other server", "the ends", "the least", "idle", "by bytes read",
        "the oldest 1024", "the oldest", "who has left", "no such sort", "overwritten", "added up", "a threshold",
        "as text", "ascii", "the first of all", "by name", "printed", "a list",
    ],
)  # fmt: skip
async def test_somebody_else_than_the_slowest_is_refused(mesh, answer, said):
    assert said in await refused("12.1", answer)


def asks_for_the_worst_alone(monitors):
    worst = [client for monitor in monitors for client in monitor.connz("sort=pending&limit=1")["connections"]]
    worst = [client for client in worst if client["pending_bytes"] > 0]
    return sorted(worst, key=lambda client: client["pending_bytes"])[-1]["name"] if worst else None


def turns_pages(monitors):
    many, name = 0, None
    for monitor in monitors:
        offset, total = 0, 1
        while offset < total:
            page = monitor.connz(f"offset={offset}&limit=500")
            offset, total = offset + len(page["connections"]), page["total"]
            for client in page["connections"]:
                if client["pending_bytes"] > many:
                    many, name = client["pending_bytes"], client.get("name")
    return name


def past(*silent, answer=None, stop=False):
    """Leave out each monitor that raises one of these, or stop there."""

    def slowest(monitors):
        answered = []
        for monitor in monitors:
            try:
                monitor.connz("limit=1")
            except silent:
                if stop:
                    break
            else:
                answered.append(monitor)
        return (answer or finding())(answered)

    return slowest


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(), "it raised ConnectionRefusedError"),
        (past(ConnectionError), "it raised TimeoutError"),
        (past(TimeoutError), "it raised ConnectionRefusedError"),
        (past(OSError, stop=True), "of two servers, the first is dead, and None was returned; expected 'dashboard'"),
    ],
    ids=["asks all", "the dead alone", "the frozen alone", "no further"],
)
async def test_a_server_that_does_not_answer_is_no_end_of_the_search(mesh, answer, said):
    assert said in await refused("12.1", answer)


@pytest.mark.parametrize("answer", [asks_for_the_worst_alone, turns_pages, finding(query="limit=100000")])
async def test_another_way_to_find_the_slowest_is_accepted(mesh, answer):
    await accepted("12.1", past(OSError, answer=answer))


REFUSED = "$SYS.SERVER.*.CLIENT.AUTH.ERR"


def watching(
    *,
    due=lambda many, limit: many == limit,
    of=lambda client: client.get("user", ""),
    subject=REFUSED,
    returns=lambda found: found,
    counted=None,
    said=lambda alarm, user: alarm(user),
    decode=lambda data: data.decode(),
):
    async def watch(admin, limit, alarm):
        refusals = Counter() if counted is None else counted

        async def note(msg):
            client = json.loads(decode(msg.data)).get("client", {})
            refusals[of(client)] += 1
            if due(refusals[of(client)], limit):
                said(alarm, client.get("user", ""))

        return returns(await admin.subscribe(subject, cb=note))

    return watch


async def hears_one_server(admin, limit, alarm):
    [server] = [json.loads((await admin.request("$SYS.REQ.SERVER.PING", b"", timeout=2)).data)["server"]["id"]]
    return await watching(subject=REFUSED.replace("*", server))(admin, limit, alarm)


async def counts_in_a_row(admin, limit, alarm):
    last = [None, 0]

    async def note(msg):
        user = json.loads(msg.data)["client"].get("user", "")
        last[:] = [user, last[1] + 1 if user == last[0] else 1]
        if last[1] == limit:
            alarm(user)

    return await admin.subscribe(REFUSED, cb=note)


async def awaits_the_alarm(admin, limit, alarm):
    counted = Counter()

    async def note(msg):
        user = json.loads(msg.data)["client"].get("user", "")
        counted[user] += 1
        if counted[user] == limit:
            await alarm(user)

    return await admin.subscribe(REFUSED, cb=note)


async def subscribes_twice(admin, limit, alarm):
    await admin.subscribe("unused")
    return await watching()(admin, limit, alarm)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (watching(returns=lambda found: None), "None was returned; expected the subscription"),
        (watching(due=lambda many, limit: many >= limit), "with a limit of 3, carl was refused 7 times, and 5 alarms"),
        (watching(due=lambda many, limit: many % limit == 0), "carl was refused 7 times, and 2 alarms came"),
        (watching(due=lambda many, limit: many in (limit, 2 * limit)), "carl was refused 7 times, and 2 alarms came"),
        (watching(due=lambda many, limit: many == limit - 1), "an alarm came for a user who was refused once"),
        (watching(due=lambda many, limit: many == limit + 1), "zoë was refused 3 times, and no alarm came"),
        (watching(due=lambda many, limit: many == 3), "with a limit of 2, ben was refused 2 times, and no alarm came"),
        (watching(of=lambda client: client.get("name")), "an alarm came for a user who was refused once"),
        (watching(of=lambda client: client["host"]), "an alarm came for a user who was refused once"),
        (watching(of=lambda client: client.get("user", "").lower()), "carl was refused 7 times"),
        (watching(subject="$SYS.ACCOUNT.LAB.DISCONNECT"), "an alarm came for a user who logged in"),
        (watching(subject="$SYS.ACCOUNT.*.*"), "an alarm came for a user who logged in"),
        (watching(subject="$SYS.>"), "an alarm came for"),
        (watching(subject=REFUSED.replace("*", "n1")), "no alarm came"),
        (watching(counted=Counter()), "an alarm came for a user who was refused once"),
        (watching(said=lambda alarm, user: alarm({"user": user})), "an alarm came for dict"),
        (watching(decode=lambda data: data.decode("ascii")), "its callback raised: 'ascii' codec"),
        (hears_one_server, "and no alarm came"),
        (counts_in_a_row, "and no alarm came"),
        (awaits_the_alarm, "its callback raised: object NoneType can't be used in 'await' expression; expected a call"),
        (subscribes_twice, "it left a subscription to unused"),
    ],
    ids=[
        "no subscription", "again and again", "at each multiple", "at twice the limit", "one too early", "one too late",
        "three", "by client", "by host", "in lower case", "another event", "who comes and goes", "all events",
        "by the name of a server", "a count for all watches", "a dict", "ascii", "one server", "in a row",
        "awaits the alarm", "two subscriptions",
    ],
)  # fmt: skip
async def test_alarms_that_are_wrong_are_refused(mesh, answer, said):
    assert said in await refused("12.2", answer)


async def hears_the_ends(admin, limit, alarm):
    """By the event that a connection ended, and its reason."""
    refusals = defaultdict(set)

    async def note(msg):
        told = json.loads(msg.data)
        user, ended = told["client"].get("user"), refusals[told["client"].get("user")]
        if told.get("reason") == "Authentication Failure" and user:
            ended.add((told["server"]["id"], told["client"]["id"]))
            if len(ended) == limit and told["client"]["id"]:
                alarm(user)

    return await admin.subscribe(REFUSED, cb=note)


async def waits_with_an_iterator(admin, limit, alarm):
    raised = set()
    counted = Counter()

    def note_one(user):
        counted[user] += 1
        if counted[user] >= limit and user not in raised:
            raised.add(user)
            alarm(user)

    async def note(msg):
        await asyncio.sleep(0)
        note_one(json.loads(msg.data)["client"]["user"])

    return await admin.subscribe(REFUSED, queue="watch-" + str(limit), cb=note)


@pytest.mark.parametrize("answer", [hears_the_ends, waits_with_an_iterator])
async def test_another_way_to_hear_guesses_is_accepted(mesh, answer):
    await accepted("12.2", answer)


def aging(
    *,
    start=lambda info: info.ack_floor.stream_seq + 1,
    none=lambda info: not info.num_pending and not info.num_ack_pending,
    following=True,
    subject=lambda info: info.config.filter_subject or ">",
    age=lambda now, stored: (now - stored).total_seconds(),
):
    async def oldest(js, stream, consumer, now):
        info = await js.consumer_info(stream, consumer)
        if none(info):
            return 0.0
        where = {"subject": subject(info)} if following else {}
        message = await js.get_msg(stream, start(info), next=following, **where)
        return age(now, message.time)

    return oldest


async def takes_them(js, stream, consumer, now):
    found = await aging()(js, stream, consumer, now)
    bound = await js.pull_subscribe_bind(consumer, stream=stream)
    try:
        for msg in await bound.fetch(1, timeout=0.2):
            await msg.nak()
    except nats.errors.TimeoutError:
        pass
    await bound.unsubscribe()
    return found


async def of_the_stream(js, stream, consumer, now):
    info = await js.consumer_info(stream, consumer)
    if not info.num_pending and not info.num_ack_pending:
        return 0.0
    first = (await js.stream_info(stream)).state.first_seq
    return (now - (await js.get_msg(stream, max(first, info.ack_floor.stream_seq + 1))).time).total_seconds()


async def of_its_own_names(js, stream, consumer, now):
    return await aging()(js, "ORDERS", "work", now)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (aging(none=lambda info: False), "no message found"),
        (aging(none=lambda info: not info.num_pending), "three messages are in hand, and none waits, and 0 was"),
        (aging(none=lambda info: not info.num_ack_pending), "three messages wait behind one of another subject, and 0"),
        (
            aging(start=lambda info: info.delivered.stream_seq + 1),
            "three messages are in hand, and none waits, and it raised NotFoundError",
        ),
        (aging(start=lambda info: 1), "the first two were acknowledged, and the age of message 2 was returned"),
        (aging(start=lambda info: max(1, info.ack_floor.stream_seq)), "the first two were acknowledged"),
        (
            aging(start=lambda info: info.ack_floor.consumer_seq + 1),
            "of three messages in hand the first two were acknowledged, and the age of message 3 was returned; expected"
            " the age of message 4",
        ),
        (aging(subject=lambda info: ">"), "behind one of another subject, and the age of message 1 was returned"),
        (aging(subject=lambda info: "parcels.a"), "the consumer has no filter_subject, and the age of message 2"),
        (aging(subject=lambda info: "parcels.*"), "the consumer has no filter_subject, and the age of message 2"),
        (aging(following=False), "the age of message 1 was returned"),
        (aging(age=lambda now, stored: (now - stored).total_seconds() * 1000), "and another number was returned"),
        (aging(age=lambda now, stored: now - stored), "timedelta was returned; expected a number of seconds"),
        (aging(age=lambda now, stored: (now - stored).seconds), "and another number was returned"),
        (aging(age=lambda now, stored: int((now - stored).total_seconds())), "and another number was returned"),
        (aging(age=lambda now, stored: (stored - now).total_seconds()), "and another number was returned"),
        (
            aging(age=lambda now, stored: (now.replace(tzinfo=datetime.UTC) - stored).total_seconds()),
            "three messages wait behind one of another subject, and another number was returned",
        ),
        (
            aging(age=lambda now, stored: (datetime.datetime.now(datetime.UTC) - stored).total_seconds()),
            "and another number was returned",
        ),
        (aging(age=lambda now, stored: float("nan")), "and another number was returned"),
        (aging(age=lambda now, stored: None), "None was returned; expected a number of seconds"),
        (takes_them, "asked for the age, it took messages from the consumer; expected that it only looks"),
        (of_the_stream, "behind one of another subject, and the age of message 1 was returned"),
        (of_its_own_names, "it raised NotFoundError"),
    ],
    ids=[
        "never none", "in hand is none", "waiting is none", "what was delivered", "the first ever", "one too early",
        "the consumer's sequence", "of any subject", "of one subject", "always a filter", "no next", "milliseconds",
        "a timedelta", "seconds of the day", "whole seconds", "negative", "another zone", "the clock", "not a number",
        "printed", "takes them", "of the stream", "its own names",
    ],
)  # fmt: skip
async def test_ages_that_are_wrong_are_refused(mesh, own_meshes_kept, answer, said):
    assert said in await refused("12.3", answer)


async def asks_in_raw(js, stream, consumer, now):
    client = js._nc
    info = json.loads((await client.request(f"$JS.API.CONSUMER.INFO.{stream}.{consumer}", b"", timeout=2)).data)
    if info["num_pending"] + info["num_ack_pending"] == 0:
        return 0
    ask = {"seq": info["ack_floor"]["stream_seq"] + 1, "next_by_subj": info["config"].get("filter_subject", ">")}
    told = await client.request(f"$JS.API.STREAM.MSG.GET.{stream}", json.dumps(ask).encode(), timeout=2)
    stored = json.loads(told.data)["message"]["time"]
    return (now - datetime.datetime.fromisoformat(stored)).total_seconds()


async def reads_from_the_floor(js, stream, consumer, now):
    info = await js.consumer_info(stream, consumer)
    if info.num_pending == 0 and info.num_ack_pending == 0:
        return 0.0
    reader = ConsumerConfig(
        deliver_policy="by_start_sequence",
        opt_start_seq=info.ack_floor.stream_seq + 1,
        filter_subject=info.config.filter_subject,
    )
    reading = await js.subscribe(info.config.filter_subject or ">", stream=stream, config=reader, ordered_consumer=True)
    msg = await reading.next_msg(timeout=2)
    await reading.unsubscribe()
    return now.timestamp() - msg.metadata.timestamp.timestamp()


async def looks_one_by_one(js, stream, consumer, now):
    info, config = await js.consumer_info(stream, consumer), None
    config = info.config.filter_subject
    if not (info.num_pending or info.num_ack_pending):
        return 0.0
    for seq in range(info.ack_floor.stream_seq + 1, (await js.stream_info(stream)).state.last_seq + 1):
        try:
            message = await js.get_msg(stream, seq)
        except nats.js.errors.NotFoundError:
            continue
        if not config or message.subject.startswith(config.rstrip("*")):
            return (now - message.time) / datetime.timedelta(seconds=1)
    return 0.0


@pytest.mark.parametrize("answer", [asks_in_raw, reads_from_the_floor, looks_one_by_one])
async def test_another_way_to_know_the_oldest_is_accepted(mesh, own_meshes_kept, answer):
    await accepted("12.3", answer)
