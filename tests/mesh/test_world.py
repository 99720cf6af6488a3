"""The whole mesh at once: exact, whatever the seed takes away."""

import os
import re
import subprocess
import sys

from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import dollars, totals_of


def test_every_part_of_the_world_does_its_work_and_every_order_comes_to_one_end() -> None:
    whole = [sys.executable, "-m", "mesh_lab.cli", "orders", "--world", "--first=800", "--seed=11"]
    done = subprocess.run(whole, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "180"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("seed: 11\n")
    rows = re.findall(r"^│ (\w+) +│ ([\w-]*) +│ (.*?) +│$", done.stdout, re.MULTILINE)
    did = {f"{part} {where}".strip(): words for part, where, words in rows if not words.startswith("$")}
    parts = {"publisher eu", "publisher us", "store store-berlin", "payment eu", "stock eu", "shipping us", "ledger us"}
    assert parts | {"lost", "locks"} <= set(did)
    only_there = re.search(r"sold (\d+) orders, (\d+) of which only the store had", did["store store-berlin"])
    assert only_there is not None
    assert 0 < int(only_there[2]) < int(only_there[1])
    assert did["ledger us"].startswith("8 partitions: 3,138 events, each order's in their order")
    assert re.search(r"(eu|us)-\d, (payment|stock|shipping)-\d, ledger-\d; the server was restarted$", did["lost"])
    assert did["locks"].startswith("TLS everywhere; 16 users of one account, each with its role's rights")
    assert f"exact: 800 orders, {dollars(totals_of(read_orders(first=800)).cents)}, each in one end" in done.stdout
