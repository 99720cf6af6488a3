"""Admission control: each request is worked on in time or refused at once, and each refusal says why."""

import asyncio
import time
from collections import Counter

import pytest
from nats.aio.msg import Msg

from mesh_lab.patterns.load_shedding import DEADLINE, ERROR, ERROR_CODE, RETRY_AFTER, AdmissionController
from mesh_lab.patterns.token_bucket import TokenBucket
from mesh_lab.patterns.wait import eventually


class Desk:
    """Work that goes on until the test opens the gate, and the replies to its requests."""

    def __init__(self, client):
        self.client = client
        self.gate = asyncio.Event()
        self.began, self.ended, self.answers = [], [], []

    async def work(self, msg: Msg) -> bytes:
        self.began.append(msg.data)
        await self.gate.wait()
        self.ended.append(msg.data)
        return b"done " + msg.data

    async def ask(self, subject: str, names: str, headers: dict[str, str] | None = None) -> None:
        inbox = self.client.new_inbox()

        async def note(msg: Msg) -> None:
            self.answers.append(msg)

        await self.client.subscribe(inbox, cb=note)
        for name in names:
            await self.client.publish(subject, name.encode(), reply=inbox, headers=headers)
        await self.client.flush()

    @property
    def codes(self) -> Counter[str]:
        return Counter((msg.headers or {}).get(ERROR_CODE, "accepted") for msg in self.answers)


@pytest.fixture
async def desk(client):
    desk = Desk(client)
    # A test that fails leaves its admission, which waits for the work: the gate opens by itself in the end.
    opening = asyncio.get_running_loop().call_later(10, desk.gate.set)
    yield desk
    opening.cancel()


async def open_desk(desk, admission):
    subject = desk.client.new_inbox()
    await desk.client.subscribe(subject, cb=admission.admit)
    return subject


async def test_so_many_are_worked_on_so_many_wait_and_the_next_are_refused_at_once(client, desk):
    async with AdmissionController(client, desk.work, at_a_time=2, waiting=3, longest_wait=30) as admission:
        subject = await open_desk(desk, admission)
        await desk.ask(subject, "abcdefgh")
        await eventually(lambda: desk.codes["503"] == 3, within=5)
        assert desk.began == [b"a", b"b"]
        refusal = desk.answers[0]
        assert refusal.data == b""
        assert refusal.headers == {ERROR_CODE: "503", ERROR: "3 requests are waiting", RETRY_AFTER: "30.000"}
        desk.gate.set()
        await eventually(lambda: desk.codes["accepted"] == 5, within=5)
    assert (admission.answered, admission.refused) == (5, 3)
    assert desk.began == sorted(desk.ended) == [b"a", b"b", b"c", b"d", b"e"]


async def test_what_has_waited_too_long_is_refused_and_not_worked_on(client, desk):
    async with AdmissionController(client, desk.work, at_a_time=1, waiting=3, longest_wait=0.05) as admission:
        subject = await open_desk(desk, admission)
        await desk.ask(subject, "ab")
        began = time.monotonic()
        await eventually(lambda: time.monotonic() - began > 0.1, within=5)
        desk.gate.set()
        await eventually(lambda: len(desk.answers) == 2, within=5)
    assert desk.began == [b"a"]
    assert desk.codes == {"accepted": 1, "503": 1}
    assert "waited 0." in desk.answers[1].headers[ERROR]


async def test_a_request_whose_asker_has_given_up_is_not_worked_on(client, desk):
    desk.gate.set()
    async with AdmissionController(client, desk.work, at_a_time=1, waiting=8, longest_wait=5) as admission:
        subject = await open_desk(desk, admission)
        await desk.ask(subject, "a", {DEADLINE: f"{time.time() - 1:.3f}"})
        await desk.ask(subject, "b", {DEADLINE: f"{time.time() + 60:.3f}"})
        await desk.ask(subject, "c", {"Other": "header"})
        await eventually(lambda: len(desk.answers) == 3, within=5)
    assert desk.began == [b"b", b"c"]
    assert desk.codes == {"accepted": 2, "504": 1}


async def test_a_deadline_that_is_no_time_is_told_what_was_expected(client, desk):
    async with AdmissionController(client, desk.work, at_a_time=1, waiting=8, longest_wait=5) as admission:
        await desk.ask(await open_desk(desk, admission), "a", {DEADLINE: "soon"})
        await eventually(lambda: len(desk.answers) == 1, within=5)
    headers = desk.answers[0].headers
    assert headers[ERROR_CODE] == "400"
    assert headers[ERROR] == "Deadline: 'soon', expected Unix seconds such as 1764000000.25"


async def test_whoever_goes_faster_than_agreed_is_told_when_to_come_back(client, desk):
    desk.gate.set()
    agreed = TokenBucket(0.1, burst=2)
    async with AdmissionController(
        client, desk.work, at_a_time=4, waiting=8, longest_wait=5, agreed=agreed
    ) as admission:
        await desk.ask(await open_desk(desk, admission), "abc")
        await eventually(lambda: len(desk.answers) == 3, within=5)
    assert desk.codes == {"accepted": 2, "429": 1}
    [refusal] = [msg for msg in desk.answers if msg.headers]
    assert refusal.headers[ERROR] == "faster than agreed"
    assert 5 < float(refusal.headers[RETRY_AFTER]) <= 10


async def test_work_that_raises_is_told_to_its_asker_and_ends_nothing_else(client, desk):
    async def fail_at_a(msg: Msg) -> bytes:
        if msg.data == b"a":
            raise KeyError("a")
        return b"done"

    async with AdmissionController(client, fail_at_a, at_a_time=1, waiting=8, longest_wait=5) as admission:
        await desk.ask(await open_desk(desk, admission), "ab")
        await eventually(lambda: len(desk.answers) == 2, within=5)
    assert desk.codes == {"accepted": 1, "500": 1}
    assert desk.answers[0].headers[ERROR] == "KeyError('a')"


async def test_an_answer_that_cannot_be_sent_is_told_to_its_asker_and_ends_nothing_else(client, desk):
    async def work(msg: Msg) -> bytes:
        match msg.data:
            case b"a":
                return bytes(2 * client.max_payload)
            case b"b":
                return None
            case b"c":
                raise asyncio.CancelledError
            case b"d":
                raise ValueError("two\nlines, and an é")
        return b"done"

    async with asyncio.timeout(10):
        async with AdmissionController(client, work, at_a_time=1, waiting=9, longest_wait=30) as admission:
            subject = await open_desk(desk, admission)
            await desk.ask(subject, "abcde")
            await eventually(lambda: len(desk.answers) == 5, within=5)
    assert [(msg.headers or {}).get(ERROR_CODE) for msg in desk.answers] == ["500"] * 4 + [None]
    assert "MaxPayloadError" in desk.answers[0].headers[ERROR]
    assert "two\\\\nlines, and an \\xe9" in desk.answers[3].headers[ERROR]
    assert (admission.answered, admission.refused, admission.unsent_replies) == (1, 4, 0)


async def test_leaving_finishes_what_was_taken_on_and_refuses_what_still_comes(client, desk):
    async def leave(admission: AdmissionController) -> None:
        await admission.__aexit__(None, None, None)

    admission = await AdmissionController(client, desk.work, at_a_time=1, waiting=8, longest_wait=5).__aenter__()
    subject = await open_desk(desk, admission)
    await desk.ask(subject, "ab")
    await eventually(lambda: desk.began == [b"a"], within=5)
    leaving = asyncio.create_task(leave(admission))
    await asyncio.sleep(0)
    await desk.ask(subject, "c")
    await eventually(lambda: desk.codes["503"] == 1, within=5)
    assert not leaving.done()
    desk.gate.set()
    await leaving
    await eventually(lambda: desk.codes == {"accepted": 2, "503": 1}, within=5)
    assert desk.ended == [b"a", b"b"]


async def test_a_message_that_asks_for_no_answer_is_worked_on_and_answered_nowhere(client, desk):
    desk.gate.set()
    async with AdmissionController(client, desk.work, at_a_time=1, waiting=1, longest_wait=5) as admission:
        subject = await open_desk(desk, admission)
        await client.publish(subject, b"a")
        await eventually(lambda: desk.ended == [b"a"], within=5)
    assert admission.answered == 1


@pytest.mark.parametrize(
    "bad",
    [{"at_a_time": 0}, {"waiting": 0}, {"longest_wait": 0}, {"longest_wait": -1}, {"longest_wait": float("nan")}],
    ids=str,
)
async def test_a_policy_that_takes_nothing_on_is_refused_with_its_numbers(client, desk, bad):
    policy = {"at_a_time": 4, "waiting": 16, "longest_wait": 0.1} | bad
    [(name, value)] = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}.* expected 1 or more"):
        AdmissionController(client, desk.work, **policy)


async def test_a_request_before_anybody_works_is_an_error_that_says_what_to_do(client, desk):
    admission = AdmissionController(client, desk.work, at_a_time=1, waiting=1, longest_wait=1)
    with pytest.raises(RuntimeError, match="x: a request and nobody to work on it; admit inside `async with"):
        await admission.admit(Msg(client, subject="x"))
