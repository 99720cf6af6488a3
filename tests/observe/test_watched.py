"""What watching costs, measured with all on that watches."""

import re

import pytest

from mesh_lab.orders.job.watched import run_watched


async def test_the_main_job_runs_with_all_on_and_with_nothing_on_and_what_is_left_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert await run_watched(workers=1, first=2_000, rounds=1) == 0
    said = capsys.readouterr().out
    assert re.search(r"left of the rate with all on: \d+%", said)
    on = dict(re.findall(r"([a-z][a-z ]+): (\d+)", said.splitlines()[-1]))
    assert on.keys() == {"batches of spans", "scrapes", "snapshots"}, "each was on"
