"""The ledger: what its members wrote, put together again."""

import pytest

from mesh_lab.errors import WrongTotalsError
from mesh_lab.orders.ledger import Entry, entries_in, lives_in

FIRST = [Entry(0, 1, 1, "a", "placed"), Entry(0, 1, 4, "a", "paid"), Entry(1, 1, 2, "b", "placed")]
SECOND = [Entry(1, 2, 3, "c", "placed"), Entry(0, 2, 4, "a", "paid"), Entry(0, 2, 7, "a", "reserved")]


@pytest.mark.parametrize("entries", [FIRST + SECOND, SECOND + FIRST], ids=["in turn", "the other member first"])
def test_what_a_new_owner_handles_again_counts_once_whoever_is_read_first(entries: list[Entry]) -> None:
    lives, again = lives_in(entries)
    assert lives == {"a": ["placed", "paid", "reserved"], "b": ["placed"], "c": ["placed"]}
    assert again == 1


def test_what_an_owner_that_was_late_wrote_after_its_successor_stands_before_it() -> None:
    late = [Entry(0, 2, 5, "a", "reserved"), Entry(0, 1, 4, "a", "paid"), Entry(0, 1, 5, "a", "reserved")]
    assert lives_in([*late[:1], *late[1:]]) == ({"a": ["paid", "reserved"]}, 1)


def test_an_owner_that_goes_back_is_an_error() -> None:
    with pytest.raises(WrongTotalsError, match="partition 3: seen event 8 after 8, expected a later one"):
        lives_in([Entry(3, 1, 8, "a", "placed"), Entry(3, 1, 8, "a", "placed")])


def test_a_member_s_lines_are_its_entries_and_the_rest_of_its_log_is_not() -> None:
    text = 'ledger: lost its connection\n[0,1,1,"a","placed"]\n[0,1,4,"a","paid"]\n{"service": "ledger"}\n'
    assert entries_in(text) == FIRST[:2]
