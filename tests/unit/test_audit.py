"""The audit of a chaos run finds every fault that is planted, and none that is not there."""

import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from mesh_lab.chaos.campaign import ShortRun, as_markdown, campaign
from mesh_lab.chaos.history import Attempt, History, audit
from mesh_lab.chaos.report import report_of, verdict_of, write, write_report
from mesh_lab.chaos.run import ChaosRun
from mesh_lab.chaos.schedule import KINDS, InjectedFault, PlannedFault, draw_schedule
from mesh_lab.chaos.stored import Stored, read_replica, truncate_replica
from mesh_lab.errors import InvariantBrokenError, NotReadyError, StoreError

WRITERS, EACH = ("w1", "w2"), 10


def history() -> History:
    """Two writers, in turns; the last order of the second has no answer, the one before was refused."""
    attempts = []
    for number in range(EACH):
        for writer in WRITERS:
            seq = len(attempts) + 1
            attempts.append(Attempt(writer, number, f"{writer}-{number}", seq * 0.1, seq * 0.1 + 0.05, "stored", seq))
    attempts[-3] = msgspec.structs.replace(attempts[-3], outcome="refused", seq=0)
    attempts[-1] = msgspec.structs.replace(attempts[-1], outcome="unknown", seq=0)
    return History(attempts)


def kept() -> list[Stored]:
    """What is stored when the promise was kept."""
    return [Stored(attempt.seq, attempt.id) for attempt in history().attempts if attempt.outcome == "stored"]


def test_a_kept_promise_is_valid():
    found = audit(history(), kept(), {"n1": kept(), "n2": kept()})
    found.check()
    assert (found.attempted, found.acknowledged, found.stored, found.recovered) == (20, 18, 18, 0)
    assert str(found) == "20 sent, 18 acknowledged, 18 stored: none lost, doubled or out of order"


def test_an_order_of_unknown_outcome_may_be_stored_or_not():
    found = audit(history(), [*kept(), Stored(20, "w2-9")])
    assert not found.broken
    assert found.recovered == 1


@pytest.mark.parametrize(
    ("plant", "broken"),
    [
        (lambda stored: stored[:4] + stored[5:], {"lost": ("w1-2",)}),
        (lambda stored: [*stored, Stored(30, "w1-3")], {"doubled": ("w1-3",)}),
        (lambda stored: [*stored, Stored(30, "stranger")], {"unexpected": ("stranger",)}),
        (lambda stored: [*stored, Stored(30, "")], {"unexpected": ("",)}),
        (
            lambda stored: [*stored[:2], Stored(3, "w1-2"), stored[3], Stored(5, "w1-1"), *stored[5:]],
            {"reversed": ("w1-2",), "misplaced": ("w1-1", "w1-2")},
        ),
        (lambda stored: [*stored[:-1], Stored(40, stored[-1].id)], {"misplaced": (kept()[-1].id,)}),
    ],
    ids=["one lost", "one twice", "a stranger", "one without an id", "two swapped", "another number"],
)
def test_a_planted_fault_is_found(plant: Callable[[list[Stored]], list[Stored]], broken: dict[str, tuple[str, ...]]):
    found = audit(history(), plant(kept()))
    assert found.broken == broken
    with pytest.raises(InvariantBrokenError, match=f"1 {next(iter(broken))}|2 {next(iter(broken))}") as caught:
        found.check()
    assert caught.value.broken == broken


def test_an_order_that_one_disk_lacks_is_found_although_a_client_reads_it():
    found = audit(history(), kept(), {"n1": kept(), "n2": kept()[1:]})
    assert found.broken == {"lost on n2": ("w1-0",)}


@pytest.mark.parametrize(
    ("on_disk", "different"),
    [
        ([*kept(), Stored(30, "stranger")], ("stranger",)),
        ([*kept()[:-1], Stored(30, kept()[-1].id)], (kept()[-1].id,)),
        ([*kept(), Stored(30, "w1-0")], ("w1-0",)),
        ([*kept(), kept()[0]], (kept()[0].id,)),
    ],
    ids=["a stranger", "another number", "one twice", "one twice under its number"],
)
def test_a_disk_that_differs_from_what_a_client_reads_is_found(on_disk, different):
    assert audit(history(), kept(), {"n1": kept(), "n2": on_disk}).broken == {"different on n2": different}


def test_an_order_that_was_refused_and_is_there_is_found():
    [refused] = [attempt.id for attempt in history().attempts if attempt.outcome == "refused"]
    assert audit(history(), [*kept(), Stored(30, refused)]).broken == {"contradicted": (refused,)}


def test_a_history_of_two_runs_in_one_is_refused():
    with pytest.raises(ValueError, match="20 ids are in the history more than once .*expected each once"):
        audit(History([*history().attempts, *history().attempts]), kept())


def test_a_run_without_faults_or_agreement_proves_nothing():
    run = ChaosRun(
        history(),
        (InjectedFault(PlannedFault(1.0, "kill", "leader", 1.0), "n1", 1.0, 2.0),),
        True,
        audit(history(), kept()),
    )
    run.check()
    nothing = audit(History([Attempt("w1", 0, "w1-0", 0.0, 1.0, "unknown")]), [])
    for worthless in (replace(run, faults=()), replace(run, caught_up=False), replace(run, audit=nothing)):
        with pytest.raises(NotReadyError, match="such a run proves nothing"):
            worthless.check()


def test_gaps_are_counted_before_the_first_answer_and_after_the_last():
    told = History([Attempt("w1", n, str(n), at - 0.1, at, "stored", n + 1) for n, at in enumerate([1.0, 1.1, 2.0])])
    told.length_s = 5.0
    assert [(gap.began_s, gap.ended_s) for gap in told.gaps()] == [(0.0, 1.0), (1.1, 2.0), (2.0, 5.0)]
    assert told.availability == pytest.approx(1 - (1.0 + 0.9 + 3.0) / 5.0)


def test_a_refusal_is_no_answer_that_ends_a_gap():
    told = History([Attempt("w1", n, str(n), at, at, "refused") for n, at in enumerate([1.0, 1.1, 2.0])])
    assert [(gap.began_s, gap.ended_s) for gap in told.gaps()] == [(0.0, 2.0)]


def test_a_history_says_how_its_attempts_ended():
    assert repr(history()) == "20 attempts in 2.0 s: 18 stored, 1 refused, 1 unknown"
    assert repr(History()) == "0 attempts in 0.0 s: 0 stored, 0 refused, 0 unknown"


def test_a_schedule_is_its_seed():
    assert draw_schedule(7, seconds=60) == draw_schedule(7, seconds=60)
    assert draw_schedule(7, seconds=60) != draw_schedule(8, seconds=60)
    assert {step.kind for step in draw_schedule(7, seconds=600)} == set(KINDS)
    assert all(step.at_s < 59 for step in draw_schedule(7, seconds=60))
    assert {step.kind for step in draw_schedule(7, seconds=60, kinds=["pause"])} == {"pause"}


@pytest.mark.parametrize("kinds", [[], ["kill", "earthquake"]], ids=["none", "an unknown one"])
def test_kinds_that_do_not_exist_are_refused(kinds):
    with pytest.raises(ValueError, match="expected some of kill, stop, step down, pause"):
        draw_schedule(1, seconds=10, kinds=kinds)


def record(seq: int, subject: bytes, *, headers: bytes = b"", payload: bytes = b"{}") -> bytes:
    """Write one record as nats-server does."""
    body = subject + (struct.pack("<I", len(headers)) + headers if headers else b"") + payload
    length = 22 + len(body) + 8
    return struct.pack("<IQqH", length | (1 << 31 if headers else 0), seq, 0, len(subject)) + body + b"checksum"


def block(tmp_path: Path, *records: bytes) -> Path:
    """Put records into a block file of stream ORDERS."""
    msgs = tmp_path / "jetstream" / "LAB" / "streams" / "ORDERS" / "msgs"
    msgs.mkdir(parents=True)
    (msgs / "1.blk").write_bytes(b"".join(records))
    return tmp_path


HEADERS = b"NATS/1.0\r\nNats-Msg-Id: w1-0\r\nOther: 1\r\n\r\n"


def test_a_block_file_is_read_up_to_its_torn_end(tmp_path: Path):
    store = block(
        tmp_path,
        record(1, b"orders.eu.1.placed", headers=HEADERS),
        record(2, b"orders.eu.2.placed"),
        record(3 | 1 << 63, b"orders.eu.3.placed", headers=HEADERS),
        record(4, b"orders.eu.4.placed", headers=HEADERS)[:-5],
    )
    assert read_replica(store, "ORDERS") == [Stored(1, "w1-0"), Stored(2, "")]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([b"cmp\x01" + bytes(100)], r"1\.blk is compressed"),
        ([record(1, b"a")[:-5], record(2, b"a")], r"1\.blk, byte 0: a record of 33 bytes goes beyond"),
        (
            [struct.pack("<IQqH", 1 << 28, 1, 0, 1) + bytes(50)],
            r"1\.blk, byte 0: a record of 268,435,456 bytes goes beyond",
        ),
    ],
    ids=["compressed", "torn in the middle", "a length that cannot be"],
)
def test_a_file_that_lacks_what_it_should_hold_is_refused(tmp_path: Path, blocks: list[bytes], said: str):
    store = block(tmp_path)
    for number, data in enumerate(blocks, start=1):
        (next(store.rglob("msgs")) / f"{number}.blk").write_bytes(data)
    with pytest.raises(StoreError, match=said):
        read_replica(store, "ORDERS")


def test_blocks_are_read_in_the_order_of_their_numbers(tmp_path: Path):
    store = block(tmp_path, record(1, b"a"))
    msgs = next(store.rglob("msgs"))
    for number in (2, 10):
        (msgs / f"{number}.blk").write_bytes(record(number, b"a"))
    assert [message.seq for message in read_replica(store, "ORDERS")] == [1, 2, 10]


def test_a_server_that_lost_the_stream_holds_nothing(tmp_path: Path):
    assert read_replica(tmp_path, "ORDERS") == []


def test_a_file_that_is_no_block_is_refused(tmp_path: Path):
    with pytest.raises(StoreError, match=r"1\.blk, byte 0: a record of 0 bytes, expected at least 30"):
        read_replica(block(tmp_path, bytes(64)), "ORDERS")


@pytest.mark.parametrize("rest", [bytes(64), record(2, b"a")[:-5], b"\xff" * 64], ids=["zeros", "a part", "garbage"])
def test_after_a_power_cut_any_block_may_break_off(tmp_path: Path, rest: bytes):
    store = block(tmp_path, record(1, b"a"), rest)
    (next(store.rglob("msgs")) / "2.blk").write_bytes(record(3, b"a"))
    assert [message.seq for message in read_replica(store, "ORDERS", torn=True)] == [1, 3]
    with pytest.raises(StoreError, match=r"1\.blk, byte 33"):
        read_replica(store, "ORDERS")


def test_a_shortened_replica_ends_with_a_whole_message(tmp_path: Path):
    store = block(tmp_path, *(record(seq, b"a" * seq, headers=HEADERS) for seq in range(1, 6)))
    truncate_replica(store, "ORDERS", keep=3)
    assert [message.seq for message in read_replica(store, "ORDERS")] == [1, 2, 3]


def test_an_order_without_its_effect_and_one_with_two_are_found():
    effects = dict.fromkeys((message.id for message in kept()), 1)
    assert not audit(history(), kept(), effects=effects).broken
    del effects["w1-4"]
    effects["w2-3"] = 2
    found = audit(history(), kept(), effects=effects)
    assert found.broken == {"without effect": ("w1-4",), "repeated effect": ("w2-3",)}


NOTHING_PLANNED = InjectedFault(PlannedFault(1.0, "kill", "leader", 1.0), "n1", 1.0, 2.0)


def run_of(stored: list[Stored], **more: object) -> ChaosRun:
    return ChaosRun(history(), (NOTHING_PLANNED,), True, audit(history(), stored), on_disk={"n1": len(stored)}, **more)


def test_servers_that_do_not_recover_are_an_outcome_of_their_own():
    run = run_of(kept(), not_back="n1 waits")
    with pytest.raises(NotReadyError, match="did not recover, although no order is lost on the disks: n1 waits"):
        run.check()
    assert verdict_of(run)[0] == "not back"
    assert verdict_of(run_of(kept())) == ("kept", "")
    assert verdict_of(replace(run_of(kept()), faults=()))[0] == "proves nothing"
    assert verdict_of(run_of(kept()[1:], not_back="n1 waits"))[0] == "broken"


@pytest.fixture(autouse=True)
def _some_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh_lab.chaos.report.versions", lambda: {"nats-server": "2.15.1"})


def test_a_report_is_one_page_and_one_json_file_that_need_nothing_from_elsewhere(tmp_path: Path):
    report = report_of(run_of([*kept()[1:], Stored(30, "<script>x</script>")]), seed=7, seconds=5.0, kinds=["kill"])
    as_json, as_html = write_report(report, tmp_path / "reports" / "one.html")
    page = as_html.read_text()
    assert page.count("<script") == 2, "an id became a part of the page"
    assert r"\u003cscript>x" in page
    assert not re.search(r"<link|<img|src=|href=|https?://(?!www\.w3\.org)", page)
    stored = msgspec.json.decode(as_json.read_bytes())
    assert (stored["verdict"], stored["run"]["seed"], stored["orders"]["lost"]) == ("broken", 7, 1)
    assert stored["run"]["nats-server"] == "2.15.1"
    assert stored["faults"] == [{"kind": "kill", "target": "leader", "server": "n1", "began_s": 1.0, "ended_s": 2.0}]


async def test_a_campaign_counts_by_kind_and_names_each_run_that_broke_the_promise(monkeypatch, tmp_path: Path):
    async def run(kind: str, seed: int) -> ShortRun:
        if (kind, seed) == ("stop", 2):
            return ShortRun(kind, seed, "broken", "1 lost", 1, 50, lost=1, longest_gap_s=3.0)
        return ShortRun(kind, seed, "kept", "", 2, 100, longest_gap_s=1.0 * seed)

    monkeypatch.setattr("mesh_lab.chaos.campaign.short_run", run)
    monkeypatch.setattr("mesh_lab.chaos.campaign.versions", lambda: {"nats-server": "2.15.1"})
    seen: list[ShortRun] = []
    found = await campaign(["kill", "stop"], 3, jobs=2, on_run=seen.append)
    assert len(seen) == 6
    assert found["kinds"]["kill"] == {
        **{"runs": 3, "kept": 3, "faults": 6, "acknowledged": 300},
        **{"lost": 0, "doubled": 0, "out_of_order": 0, "median_gap_s": 2.0},
    }
    assert (found["kinds"]["stop"]["kept"], found["kinds"]["stop"]["lost"]) == (2, 1)
    as_json, as_table = write(found, tmp_path / "campaign", ".md", as_markdown(found))
    assert "| stop | 3 | 2 | 5 | 250 | 1 | 0 | 0 | 3.0 |" in as_table.read_text()
    assert "- stop, seed 2: broken. 1 lost" in as_table.read_text()
    assert msgspec.json.decode(as_json.read_bytes())["not_kept"][0]["seed"] == 2
