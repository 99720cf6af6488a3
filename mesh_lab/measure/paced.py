"""Load at a given rate, and what each message waited: from the moment at which it was due, not from when it left.

A generator that waits for an answer before it asks again slows down with the system that it measures: while the
system stands still, it asks nothing, and the bad moments are missing from the result. That is *coordinated
omission* (Gil Tene, "How NOT to Measure Latency", 2013). Here the times at which messages are due are fixed
beforehand. A message that leaves late because its predecessors are stuck has been waiting since then.

The child keeps time with ``select``, which counts in microseconds; the event loops of asyncio and uvloop sleep in
whole milliseconds.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import msgspec

from mesh_lab.measure.load import publisher_tasks
from mesh_lab.measure.load_children import run_children
from mesh_lab.measure.paced_run import PacedRun

__all__ = ["PacedRun", "paced_load"]

Until = Literal["reply", "ack", "received"]
Arrivals = Literal["steady", "random"]


async def paced_load(
    options: Mapping[str, Any],
    *,
    subject: str,
    rate_per_s: float,
    seconds: float,
    until: Until = "reply",
    closed: bool = False,
    arrivals: Arrivals = "steady",
    seed: int = 1,
    payloads: Sequence[bytes] | None = None,
    payload_bytes: int = 128,
    patience: float = 2.0,
    within: float = 60.0,
) -> PacedRun:
    """Send messages at a rate that nothing slows down, and return what became of each.

    Args:
        options: Arguments of ``nats.connect``, as ``mesh.connect_options()`` returns them.
        subject: Where to publish; a token ``{n}`` becomes the message's number.
        rate_per_s: Messages a second; one process manages some 10,000 on the machines of the course. The run says in
            words when it was late itself.
        seconds: How long messages are due.
        until: What ends a message: ``"reply"`` to a request, ``"ack"`` of a stream, ``"received"`` by a subscriber.
            A stream that listens to the subject answers a request, too.
        closed: Wait for each answer before the next message leaves, however long ago that was due: the closed loop.
        arrivals: ``"steady"`` gaps, or ``"random"`` ones as of senders who know nothing of each other (Poisson).
        seed: Chooses the random gaps; the same seed gives the same ones.
        payloads: What to send, in turn; ``None`` sends numbers. ``"received"`` needs the numbers.
        payload_bytes: Size of each payload without ``payloads``, 8 or more.
        patience: Seconds to wait for answers after the last message has left; in a closed loop, after each. What has
            not been answered then is lost. An answer that comes while the run still lasts counts, however late.
        within: Seconds beyond ``seconds`` and ``patience`` until the child must be done. A closed loop whose messages
            are not answered needs ``patience`` for each.

    Raises:
        ValueError: A number is out of its range, or the subject or the options cannot be used.
        LoadFailedError: The child ended without a result; the message carries its traceback.
    """
    messages = _messages(rate_per_s, seconds, patience, within)
    for name, value, known in (("until", until, get_args(Until)), ("arrivals", arrivals, get_args(Arrivals))):
        if value not in known:
            raise ValueError(f"{name}={value!r}, expected one of {', '.join(known)}")
    if payloads is not None and (until == "received" or not payloads):
        raise ValueError(f"{len(payloads)} payloads until {until!r}: expected 1 or more, and not until 'received'")
    limit = seconds + patience + within
    [task] = publisher_tasks("paced", options, subject, messages, payload_bytes, 1, limit, controls=[])
    paced = msgspec.structs.replace(
        task,
        rate_per_s=float(rate_per_s),
        until=until,
        closed=closed,
        random_arrivals=arrivals == "random",
        seed=seed,
        payloads=list(payloads or []),
        patience=float(patience),
    )
    [[report], _] = await run_children([paced], within=limit)
    due, sent, done = (array("q", part) for part in (report.due_ns, report.sent_ns, report.done_ns))
    start = report.began_ns
    return PacedRun(
        offered_per_s=rate_per_s,
        due_ns=due,
        sent_ns=[at - start for at in sent],
        done_ns=[at - start if at else 0 for at in done],
        outcome=report.outcome,
        gave_up_ns=report.ended_ns - start,
        closed=closed,
        server_version=report.server_version,
    )


def _messages(rate_per_s: float, seconds: float, patience: float, within: float) -> int:
    """Return how many messages are due."""
    numbers = {"rate_per_s": rate_per_s, "seconds": seconds, "patience": patience, "within": within}
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name}={value}, expected a positive number")
    if (messages := round(rate_per_s * seconds)) < 1:
        raise ValueError(f"rate_per_s={rate_per_s}, seconds={seconds}: no message is due; expected 1 or more")
    return messages
