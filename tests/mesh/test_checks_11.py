"""The exercises of notebook 11: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import json
from collections import Counter

import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("11_watch_the_mesh", json=json)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def finding(*, which=lambda monitors: monitors, idle=False, least=False, names=dict.get):
    def slowest(monitors):
        clients = [client for monitor in which(monitors) for client in monitor.connz("sort=pending")["connections"]]
        if not clients:
            return None
        worst = (min if least else max)(clients, key=lambda client: client["pending_bytes"])
        return names(worst, "name") if worst["pending_bytes"] or idle else None

    return slowest


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(which=lambda monitors: monitors[:1]), "the slow one sits on the second, and None was returned"),
        (finding(which=lambda monitors: monitors[-1:]), "the slow one sits on the first"),
        (finding(least=True), "the slow one sits on the second"),
        (finding(idle=True), "nobody has anything pending, and 'shop' was returned"),
        (
            lambda monitors: monitors[0].connz("sort=pending")["connections"][0]["name"],
            "the slow one sits on the second",
        ),
        (lambda monitors: max((c["name"] for m in monitors for c in m.connz()["connections"]), default=None), "'till'"),
    ],
    ids=["the first server", "the last server", "the least", "idle", "the first of all", "by name"],
)
async def test_somebody_else_than_the_slowest_is_refused(mesh, answer, said):
    assert said in await refused("11.1", answer)


async def test_an_answer_that_trips_over_a_client_without_a_name_is_shown(mesh):
    def slowest(monitors):
        clients = [(c["pending_bytes"], c["name"]) for m in monitors for c in m.connz()["connections"]]
        many, name = max(clients, default=(0, None))
        return name if many else None

    assert "KeyError" in await refused("11.1", slowest)


def watching(*, once=True, per_user=True, early=0, subject="$SYS.SERVER.*.CLIENT.AUTH.ERR", returns=True):
    async def watch(admin, limit, alarm):
        counted = Counter()

        async def note(msg):
            user = json.loads(msg.data)["client"].get("user", "")
            counted[user if per_user else "all"] += 1
            many = counted[user if per_user else "all"]
            if many == limit - early or (not once and many > limit):
                alarm(user)

        found = await admin.subscribe(subject, cb=note)
        return found if returns else None

    return watch


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (watching(returns=False), "None was returned"),
        (watching(once=False), "alarms came for ['ben', 'carl', 'carl', 'carl']"),
        (watching(per_user=False), "alarms came for ['ben']"),
        (watching(early=1), "alarms came for ['anna', 'ben', 'carl']"),
        (watching(subject="$SYS.ACCOUNT.LAB.DISCONNECT"), "alarms came for []"),
    ],
    ids=["no subscription", "again and again", "all together", "one too early", "another event"],
)
async def test_alarms_that_are_wrong_are_refused(mesh, answer, said):
    assert said in await refused("11.2", answer)


def aging(*, start=lambda info: info.ack_floor.stream_seq + 1, empty=True, following=True, scale=1.0):
    async def oldest(js, stream, consumer, now):
        info = await js.consumer_info(stream, consumer)
        if empty and not info.num_pending and not info.num_ack_pending:
            return 0.0
        message = await js.get_msg(stream, start(info), next=following)
        return (now - message.time).total_seconds() * scale

    return oldest


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (aging(empty=False), "no message found"),
        (aging(start=lambda info: info.delivered.stream_seq + 1), "two messages are in hand"),
        (aging(start=lambda info: 1), "the first is acknowledged, and the age is not that of the second"),
        (aging(start=lambda info: max(1, info.ack_floor.stream_seq)), "the first is acknowledged"),
        (aging(scale=1000.0), "three messages wait"),
        (aging(), "a message waits behind one of another subject"),
    ],
    ids=["never empty", "what was delivered", "the first ever", "one too early", "milliseconds", "of any subject"],
)
async def test_ages_that_are_wrong_are_refused(mesh, answer, said):
    assert said in await refused("11.3", answer)
