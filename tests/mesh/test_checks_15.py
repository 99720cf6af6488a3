"""The exercises of notebook 15: stubs are not attempted, plausible wrong answers are refused with the right reason."""

import asyncio
import re

import nats.js.errors
import pytest
from exercise_cells import ExerciseCells, refused

CELLS = ExerciseCells("15_avoid_the_traps", asyncio=asyncio, nats=nats)

test_the_cell_for_the_reader_is_not_attempted, test_the_solution_in_the_notebook_is_correct = CELLS.tests()


def placing(pattern, *, matches=re.fullmatch, error=ValueError, subject="orders.eu.{}.placed"):
    def placed(number):
        if not matches(pattern, number):
            raise error(number)
        return subject.format(number)

    return placed


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (placing(r".*", matches=lambda pattern, number: True), "an empty number was let through"),
        (placing(r"[^.*> ]+"), "a tab was let through"),
        (placing(r"[^.*>\s]+"), "33 characters was let through"),
        (placing(r"[^.*> \t\r\n]{1,32}"), "a form feed was let through"),
        (placing(r"[\w-]{1,32}"), "a digit that is not ASCII was let through"),
        (placing(r"^[A-Za-z0-9_-]{1,32}$", matches=re.match), "a line break at the end was let through"),
        (placing(r"[A-Za-z0-9_-]{1,32}", matches=re.match), "a dot was let through"),
        (placing(r"[0-9]{1,32}"), "'a-b' was refused"),
        (placing(r"[A-Za-z0-9_-]{1,31}"), "was refused"),
        (placing(r"[A-Za-z0-9_-]{1,32}", subject="orders.{}.placed"), "'1' became 'orders.1.placed'"),
        (placing(r"[A-Za-z0-9_-]{1,32}", error=KeyError), "KeyError"),
    ],
)
async def test_subjects_that_are_not_safe_are_refused(mesh, answer, said):
    assert said in await refused("15.1", answer)


def opening(*, checks=True, compares=("filter_subject", "ack_wait"), error=ValueError, first="info", makes=True):
    async def open_consumer(js, stream, config):
        try:
            there = (await js.consumer_info(stream, config.durable_name)).config if checks else None
        except nats.js.errors.NotFoundError:
            there = None
        if there is None:
            if makes:
                await js.add_consumer(stream, config)
            return
        if first == "delete":
            await js.delete_consumer(stream, config.durable_name)
            await js.add_consumer(stream, config)
            return
        if any(getattr(there, name) != getattr(config, name) for name in compares) and error:
            raise error("another one")

    return open_consumer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (opening(makes=False), "the stream has no consumers"),
        (opening(checks=False), "opened with another filter_subject, the consumer was changed"),
        (opening(first="delete"), "opened again, the consumer was made anew"),
        (opening(compares=()), "opened with another filter_subject, nothing was raised"),
        (opening(compares=("filter_subject",)), "opened with another ack_wait, nothing was raised"),
        (opening(error=None), "opened with another filter_subject, nothing was raised"),
        (opening(error=KeyError), "KeyError"),
    ],
    ids=["makes none", "adds always", "makes anew", "never compares", "compares half", "says nothing", "another error"],
)
async def test_a_consumer_that_is_stolen_is_refused(mesh, answer, said):
    assert said in await refused("15.2", answer)


def holding(*, says=True, stops=True, acks=True, naks=True, raises=True, waits=True, every=0.3, lingers=False):
    async def hold(msg, work):
        ended = asyncio.Event()

        async def keep_saying():
            while True:
                await asyncio.sleep(every)  # pacing
                await msg.in_progress()
                if ended.is_set():
                    return

        saying = asyncio.create_task(keep_saying()) if says else None
        try:
            await work() if waits else None
        except LookupError:
            if naks:
                await msg.nak()
            if raises:
                raise
            return
        finally:
            if lingers:
                ended.set()
            elif saying and stops:
                saying.cancel()
        if acks:
            await msg.ack_sync()

    return hold


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (holding(says=False), "the message was delivered again"),
        (holding(every=1.5), "the message was delivered again"),
        (holding(waits=False), "it returned before the work was done"),
        (holding(acks=False), "the message was not acknowledged"),
        (holding(stops=False), "a task of it goes on"),
        (holding(lingers=True), "a task of it goes on"),
        (holding(naks=False), "came again only after ack_wait"),
        (holding(raises=False), "hold returned as if all were well"),
    ],
    ids=["silent", "too rarely", "does not wait", "no ack", "goes on", "goes on for a while", "no nak", "swallows"],
)
async def test_a_message_that_is_not_held_is_refused(mesh, answer, said):
    assert said in await refused("15.3", answer)
