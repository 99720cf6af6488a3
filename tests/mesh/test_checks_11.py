"""The exercises of notebook 11: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import sys
from functools import cache

import pytest
from exercise_cells import ExerciseCells, accepted, refused

from mesh_lab.notebook import exercises
from mesh_lab.security import Operator

CELLS = ExerciseCells("11_isolate_the_tenants")

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


kept_operator = cache(Operator)


@pytest.fixture
def servers_kept(own_meshes_kept, monkeypatch):
    """Servers of the check's own belong to an operator: with one for all trials, they can be kept, too."""
    exercises._load("11")
    monkeypatch.setattr(sys.modules["mesh_lab_checks.11_isolate_the_tenants"], "Operator", kept_operator)


EXPORT = {"name": "refunds", "type": "service", "subject": "cards.refund"}
IMPORT = {"name": "refunds", "type": "service", "subject": "cards.refund", "local_subject": "refunds.ask"}


def opening(exports=(EXPORT,), imports=(IMPORT,), *, back=(), account=None):
    def open_counter(bank, shop):
        bank.exports += exports
        shop.imports += [{"account": (account or bank).public, **one} for one in imports]
        if back:
            shop.exports += back
            bank.imports += [{**one, "account": shop.public} for one in back]

    return open_counter


def the_other_way(bank, shop):
    opening()(shop, bank)


ORDERS = {"name": "orders", "type": "stream", "subject": "orders.>"}
CHARGE = {"name": "charge", "type": "service", "subject": "cards.charge"}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            opening(exports=()),
            "nobody answered: the bank exports nothing; expected an answer of the bank's cards.refund",
        ),
        (opening(imports=()), "nobody answered: the shop imports nothing"),
        (the_other_way, "nobody answered: the shop exports to the bank"),
        (opening(imports=({**IMPORT, "local_subject": "refund"},)), "nobody answered: the shop imports it as 'refund'"),
        (opening(imports=({**IMPORT, "subject": "cards.charge"},)), "the shop imports 'cards.charge' of the bank's"),
        (opening(account=Operator("other").account("bank")), "the shop's import names another account than the bank"),
        (
            opening(exports=({**EXPORT, "type": "stream"},)),
            "the bank's export is of type 'stream', which cannot be asked",
        ),
        (opening(exports=({**EXPORT, "token_req": True},)), "the bank's export is private (token_req)"),
        (lambda bank, shop: setattr(bank, "exports", EXPORT), "are no lists of dictionaries"),
        (
            opening(exports=({**EXPORT, "subject": "cards.>"},)),
            "a stranger who imported cards.charge was answered; expected an export of cards.refund alone",
        ),
        (opening(exports=(EXPORT, CHARGE)), "a stranger who imported cards.charge was answered"),
        (
            opening(exports=(EXPORT, {**CHARGE, "subject": "accounts.close"})),
            "the bank also exports 'accounts.close', to whoever imports it",
        ),
        (
            opening(
                exports=({**EXPORT, "subject": ">"},),
                imports=(IMPORT, {**IMPORT, "name": "all", "subject": "cards.charge", "local_subject": "cards.charge"}),
            ),
            "the bank also heard cards.charge",
        ),
        (
            opening(imports=(IMPORT, {**IMPORT, "name": "again", "local_subject": "give.back"})),
            "the shop has 2 imports",
        ),
        (
            opening(
                exports=(EXPORT, {"name": "notices", "type": "stream", "subject": "notices.>"}),
                imports=(IMPORT, {"name": "notices", "type": "stream", "subject": "notices.>"}),
            ),
            "the shop also heard notices.closed",
        ),
        (opening(back=(ORDERS,)), "the bank also heard orders.eu.000001.placed"),
        (opening(back=({**ORDERS, "subject": "stock.>"},)), "something can also pass from the shop to the bank"),
    ],
    ids=[
        *(
            "no export",
            "no import",
            "the other way",
            "another name",
            "another service",
            "another account",
        ),
        *(
            "a stream",
            "private",
            "no list",
            "too wide an export",
            "charge",
            "exports more",
        ),
        *(
            "a second door",
            "a third name",
            "a stream too",
            "the orders",
            "the stock",
        ),
    ],
)
async def test_a_counter_that_is_shut_or_too_wide_is_refused(mesh, servers_kept, answer, said):
    assert said in await refused("11.1", answer)


def with_more_words(bank, shop):
    bank.exports = [{**EXPORT, "response_type": "Singleton", "account_token_position": 0}]
    shop.imports = [{**IMPORT, "name": "give back", "account": bank.public, "share": False}]


@pytest.mark.parametrize("answer", [opening(exports=({**EXPORT, "name": ""},)), with_more_words])
async def test_a_counter_opened_otherwise_is_accepted(mesh, servers_kept, answer):
    await accepted("11.1", answer)


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
async def test_limits_that_are_too_low_or_too_high_are_refused(mesh, servers_kept, changes, said):
    assert said in await refused("11.2", limited(**changes))


def one_for_all():
    known = []

    def student(operator, name):
        known[:] = known or [limited()(operator, name)]
        known[0].name = name
        return known[0]

    return student


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda operator, name: name, "str was returned"),
        (lambda operator, name: limited()(operator, name).user(name), "User was returned; expected an account"),
        (limited(connections=3), "no limit is called connections"),
        (lambda operator, name: limited()(operator, "student"), "the account for 'Zoë' is called 'student'"),
        (lambda operator, name: limited()(Operator("mine"), name), "another operator signed the account"),
        (one_for_all(), "the account for 'Zoë' is called 'student-10'"),
        (limited(consumer=10), "consumer is limited, too; expected five limits"),
        (limited(mem_storage=5_000_000), "mem_storage is limited, too"),
    ],
    ids=[
        *(
            "a name",
            "a user",
            "another word",
            "another name",
            "another operator",
            "one for all",
        ),
        *(
            "consumers",
            "memory",
        ),
    ],
)
async def test_another_account_for_a_student_is_refused(mesh, servers_kept, answer, said):
    assert said in await refused("11.2", answer)


def sets_the_limits_afterwards(operator, name):
    account = operator.account(name)
    account.limits.update(disk_storage=5 * 10**6, payload=2**16, subs=20, streams=2, conn=3)
    return account


@pytest.mark.parametrize("answer", [sets_the_limits_afterwards, limited(mem_storage=-1, leaf=-1)])
async def test_an_account_limited_otherwise_is_accepted(mesh, servers_kept, answer):
    await accepted("11.2", answer)


def seated(*, publish=("work.{}.>",), subscribe=("work.>", "_INBOX_{}.>"), lives=lambda seconds: seconds, account=None):
    def seat(given, name, seconds):
        allowed = [
            publish and [one.format(name) for one in publish],
            subscribe and [one.format(name) for one in subscribe],
        ]
        user = (account or given).user(name, publish=allowed[0], subscribe=allowed[1], lives_for=lives(seconds))
        return user

    return seat


def also_publishes(*subjects):
    return seated(publish=("work.{}.>", *subjects))


def also_hears(*subjects):
    return seated(subscribe=("work.>", "_INBOX_{}.>", *subjects))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda account, name, seconds: name, "str was returned"),
        (seated(publish=None), "may publish as somebody else"),
        (seated(publish=("work.>",)), "may publish as somebody else"),
        (seated(publish=("work.{}",)), "a participant was refused"),
        (seated(publish=("work.ada.>",)), "a participant was refused"),
        (also_publishes("work.{}"), "a participant may publish beside its own place: work.ada"),
        (also_publishes("*.{}.>"), "a participant may publish beside its own place: exams.ada.done"),
        (also_publishes("$JS.API.>"), "a participant may ask JetStream: $JS.API.INFO"),
        (also_publishes("$JS.API.STREAM.CREATE.*"), "a participant may make a stream"),
        (also_publishes("_INBOX_teacher.>"), "a participant may answer for others"),
        (seated(subscribe=None), "may hear >"),
        (seated(subscribe=("work.>", "_INBOX.>")), "could not hear the answer"),
        (seated(subscribe=("work.>", "_INBOX_ada.>")), "could not hear the answer"),
        (
            seated(subscribe=("work.*", "_INBOX_{}.>")),
            "a participant was refused: nats: permissions violation",
        ),
        (also_hears("work"), "a participant may hear work;"),
        (also_hears("_INBOX_bob.>"), "a participant may hear _INBOX_bob.>"),
        (also_hears("exams.>"), "a participant may hear exams.>"),
        (seated(lives=lambda seconds: None), "the token for 3 s never ends; expected one that ends after 3 s"),
        (seated(lives=lambda seconds: 3), "the token for 60 s ends too early"),
        (seated(account=Operator("mine").account("workshop")), "ada was refused at the door: nats: 'Authorization"),
    ],
    ids=[
        *(
            "nobody",
            "all",
            "others too",
            "one level",
            "ada alone",
            "its name",
        ),
        *(
            "exams",
            "JetStream",
            "makes streams",
            "answers",
            "hears all",
            "all inboxes",
        ),
        *(
            "ada's inbox",
            "hears one level",
            "the word alone",
            "Bob's inbox",
            "hears exams",
            "for ever",
        ),
        *(
            "3 s",
            "another account",
        ),
    ],
)
async def test_a_seat_that_is_too_narrow_too_wide_or_too_long_is_refused(mesh, servers_kept, answer, said):
    assert said in await refused("11.3", answer)


async def test_a_seat_made_otherwise_is_accepted(mesh, servers_kept):
    await accepted("11.3", seated(subscribe=("work.*", "work.*.>", "_INBOX_{}.*", "_INBOX_{}.*.*"), lives=int))
