"""The exercises of notebook 10: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("10_isolate_the_tenants")

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


EXPORT = {"name": "refunds", "type": "service", "subject": "cards.refund"}
IMPORT = {"name": "refunds", "type": "service", "subject": "cards.refund", "local_subject": "refunds.ask"}


def opening(exports=(EXPORT,), imports=(IMPORT,)):
    def open_counter(bank, shop):
        bank.exports += exports
        shop.imports += [{"account": bank.public, **one} for one in imports]

    return open_counter


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (opening(exports=()), "nobody answered"),
        (opening(imports=()), "nobody answered"),
        (opening(imports=({**IMPORT, "local_subject": "refund"},)), "nobody answered"),
        (opening(exports=({**EXPORT, "type": "stream"},)), "nobody answered"),
        (
            opening(exports=({**EXPORT, "subject": "cards.>"},), imports=({**IMPORT, "subject": "cards.refund"},)),
            "a stranger who imported cards.charge was answered",
        ),
        (
            opening(
                exports=({**EXPORT, "subject": ">"},),
                imports=(IMPORT, {**IMPORT, "name": "all", "subject": "cards.charge", "local_subject": "cards.charge"}),
            ),
            "the bank also heard cards.charge",
        ),
        (
            opening(
                exports=(EXPORT, {"name": "notices", "type": "stream", "subject": "notices.>"}),
                imports=(IMPORT, {"name": "notices", "type": "stream", "subject": "notices.>"}),
            ),
            "the shop also heard notices.closed",
        ),
    ],
    ids=["no export", "no import", "another name", "a stream", "too wide an export", "a second door", "a stream too"],
)
async def test_a_counter_that_is_shut_or_too_wide_is_refused(mesh, answer, said):
    assert said in await refused("10.1", answer)


def limited(**changes):
    limits = {"conn": 3, "subs": 20, "payload": 65_536, "streams": 2, "disk_storage": 5_000_000, **changes}
    return lambda operator, name: operator.account(name, **{what: most for what, most in limits.items() if most})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"conn": None}, "4 connections are allowed; expected 3"),
        ({"conn": 2}, "3 connections are refused"),
        ({"subs": None}, "21 subscriptions are allowed"),
        ({"subs": 19}, "20 subscriptions are refused"),
        ({"payload": 64_000}, "65,536 bytes in a message are refused"),
        ({"payload": None}, "65,537 bytes in a message are allowed"),
        ({"streams": 1}, "2 streams are refused"),
        ({"streams": None}, "3 streams are allowed"),
        ({"disk_storage": 5_242_880}, "5,000,001 bytes on disk are allowed"),
        ({"disk_storage": 500_000}, "5,000,000 bytes on disk are refused"),
        ({"disk_storage": None, "mem_storage": 5_000_000}, "5,000,001 bytes on disk are allowed"),
    ],
)
async def test_limits_that_are_too_low_or_too_high_are_refused(mesh, changes, said):
    assert said in await refused("10.2", limited(**changes))


async def test_what_is_no_account_is_refused(mesh):
    assert "str was returned" in await refused("10.2", lambda operator, name: name)
    assert "no limit is called connections" in await refused("10.2", limited(connections=3))


def seated(*, publish="work.{}.>", subscribe=("work.>", "_INBOX_ada.>"), lives_for=True):
    def seat(account, name, seconds):
        allowed = [publish.format(name)] if publish else None
        return account.user(name, publish=allowed, subscribe=subscribe, lives_for=seconds if lives_for else None)

    return seat


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda account, name, seconds: name, "str was returned"),
        (seated(publish=None), "may publish as somebody else"),
        (seated(publish="work.>"), "may publish as somebody else"),
        (seated(publish="work.{}"), "a participant was refused"),
        (seated(subscribe=None), "may hear >"),
        (seated(subscribe=("work.>",)), "could not hear the answer"),
        (seated(subscribe=("work.>", "_INBOX.>")), "could not hear the answer"),
        (seated(subscribe=("work.*.*", "_INBOX_ada.>")), "a participant was refused"),
        (seated(lives_for=False), "was not disconnected in time"),
    ],
    ids=[
        "nobody",
        "all",
        "others too",
        "one level",
        "hears all",
        "no inbox",
        "all inboxes",
        "hears one level",
        "for ever",
    ],
)
async def test_a_seat_that_is_too_narrow_too_wide_or_too_long_is_refused(mesh, answer, said):
    assert said in await refused("10.3", answer)
