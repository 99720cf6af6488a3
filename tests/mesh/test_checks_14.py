"""The exercises of notebook 14: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import pytest
from exercise_cells import ExerciseCells, refused

from mesh_lab.orders import decode

CELLS = ExerciseCells("14_run_the_order_mesh", imports=("mesh_lab.orders",))

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


async def events_of(client) -> list[tuple[str, str, str, int]]:
    """Return region, id, event and cents of all that the store holds."""
    js = client.jetstream()
    state = (await js.stream_info("ORDERS")).state
    found = []
    for seq in range(1, state.messages + 1):
        msg = await js.get_msg("ORDERS", seq)
        found.append((*msg.subject.split(".")[1:], decode(msg.data).cents))
    return found


def finding(*, ends=("shipped", "declined", "cancelled"), begins=("placed",), kind=set):
    async def unfinished(client):
        events = await events_of(client)
        ended = {order for _, order, event, _ in events if event in ends}
        return kind({order for _, order, event, _ in events if event in begins} - ended)

    return unfinished


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (finding(ends=("shipped",)), "000004 is in it: placed, declined"),
        (finding(ends=("shipped", "declined")), "000006 is in it: placed, paid, cancelled"),
        (finding(ends=("shipped", "declined", "cancelled", "reserved")), "000005 is missing"),
        (finding(begins=("paid",)), "000003 is missing: placed"),
        (finding(kind=sorted), "the store is empty, and [] was returned"),
    ],
    ids=["only shipped", "without cancelled", "reserved ends", "only paid", "a list"],
)
async def test_other_orders_than_the_unfinished_are_refused(mesh, answer, said):
    assert said in await refused("14.1", answer)


def worth(*, events=("paid",), cancelled=True, key=lambda region: region, once=True, kind=dict):
    async def worth_of(client):
        stored = await events_of(client)
        gone = {order for _, order, event, _ in stored if event == "cancelled"} if cancelled else set()
        found, seen = {}, set()
        for region, order, event, cents in stored:
            if event in events and order not in gone and not (once and order in seen):
                seen.add(order)
                found[key(region)] = found.get(key(region), 0) + cents
        return kind(found)

    return worth_of


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (worth(events=("placed",)), "us has 4,610 cents"),
        (worth(cancelled=False), "eu has 61200 cents"),
        (worth(events=("shipped",)), "eu has 1000 cents"),
        (worth(events=("paid", "shipped"), once=False), "eu has 3200 cents"),
        (worth(once=False), "eu has 2200 cents"),
        (worth(), "asia has None cents"),
        (worth(key=lambda region: "all"), "eu has None cents"),
        (worth(kind=sorted), "list was returned"),
    ],
    ids=["placed", "cancelled too", "shipped", "twice", "an event twice", "a region without", "one sum", "a list"],
)
async def test_another_worth_is_refused(mesh, answer, said):
    assert said.replace("4,610", "4610") in await refused("14.2", answer)
