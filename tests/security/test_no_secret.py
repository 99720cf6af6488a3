"""No secret is anywhere but in files of its owner: not in what is printed, not in a command line, not in a variable."""

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest

from mesh_lab.errors import CredentialsError, LoginRefusedError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.order import totals_of
from mesh_lab.patterns.connection import connect
from mesh_lab.patterns.wait import eventually
from mesh_lab.security.accounts import Operator
from mesh_lab.security.certificates import Authority
from mesh_lab.servers.start import start_mesh

ROOT = Path(__file__).parents[2]
# A seed of an operator, account, user, server or curve key; a private key; a token's three parts.
SECRET = re.compile(r"\bS[OAUNXC][A-Z2-7]{56}\b|-----BEGIN [A-Z ]*PRIVATE KEY|\beyJ[\w-]+\.eyJ[\w-]+\.[\w-]{80,}")
ORDERS = 3_000


def secrets_in(text: str, known: set[str] = frozenset()) -> list[str]:
    """Return the beginnings of what is secret in a text: by its form, or because it is known."""
    return [found[0][:12] for found in SECRET.finditer(text)] + [one[:4] for one in known if one in text]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("seed SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY", 1),
        ("key UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4", 0),
        ("-----BEGIN EC PRIVATE KEY-----\nMHcCAQ", 1),
        ("-----BEGIN CERTIFICATE-----", 0),
        (f"eyJ0eXAiOiJKV1QifQ.eyJzdWIiOiJ4In0.{'a' * 86}", 1),
        ("the password is hush", 1),
    ],
)
def test_what_is_secret_is_found(text: str, found: int) -> None:
    assert len(secrets_in(text, {"hush"})) == found


def _known(directory: Path) -> set[str]:
    """Return the secrets that lie in a mesh's files: passwords, and the lines of keys and credentials."""
    known: set[str] = set()
    for path in directory.rglob("*"):
        if path.suffix == ".conf":
            known |= set(re.findall(r'password: "([^"]+)"', path.read_text()))
        elif path.suffix in (".creds", ".key"):
            known |= {line for line in path.read_text().splitlines() if len(line) > 40 and not line.startswith("-----")}
    return known


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, a process's variables are not to be read like files")
async def test_the_secure_main_job_leaves_no_secret_anywhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mesh_lab.cli", "orders", "--secure", "--kill-one", f"--first={ORDERS}"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    seen: dict[str, set[str]] = {"command lines": set(), "variables": set(), "logs": set()}
    known: set[str] = set()
    modes: dict[str, set[int]] = {"directories": set(), "secrets": set()}
    services: set[str] = set()
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        try:
            saying = asyncio.ensure_future(asyncio.to_thread(job.communicate))

            def look() -> bool:
                """Read of the processes what others could, and the files; return whether the job is over."""
                for process in psutil.Process(job.pid).children(recursive=True) if job.poll() is None else []:
                    try:
                        line = " ".join(process.cmdline())
                        seen["command lines"].add(line)
                        seen["variables"].add("\n".join(f"{name}={value}" for name, value in process.environ().items()))
                        services.update(re.findall(r"--name (\S+)", line))
                        if (errors := Path(f"/proc/{process.pid}/fd/2")).is_file():  # a temporary file without a name
                            seen["logs"].add(errors.read_text(errors="replace"))
                    except (psutil.Error, OSError):  # it has ended
                        continue
                for directory in tmp_path.glob("mesh-lab-*"):
                    try:
                        known.update(_known(directory))
                        modes["directories"] |= {_mode(directory), _mode(directory / "credentials")}
                        modes["secrets"] |= {
                            _mode(p) for p in directory.rglob("*") if p.suffix in (".creds", ".key", ".conf")
                        }
                        seen["logs"] |= {path.read_text() for path in directory.glob("*.log")}
                    except OSError:  # not made yet, or removed at the end
                        continue
                return saying.done()

            await eventually(look, within=100.0, every=0.1)
        finally:
            job.kill()
    out, err = await saying
    assert job.returncode == 0, err
    assert f"exact: {totals_of(read_orders(first=ORDERS))}" in " ".join(out.split())
    assert re.findall(r"fault: n\d (\w+)", out) == ["killed", "restarted"]
    assert services == {"publisher", "read-model", "worker-1", "worker-2"}
    assert len(known) >= 3 + 2 * 6, "passwords of the servers, tokens and seeds of six users were looked for"
    assert modes == {"directories": {0o700}, "secrets": {0o600}}
    assert list(tmp_path.iterdir()) == []
    for place, texts in {**seen, "output": {out}, "errors": {err}}.items():
        assert secrets_in("\n".join(texts), known) == [], place
    assert [text for text in seen["variables"] if '"user_credentials": "' in text], "they name a file"


async def test_no_error_tells_a_secret(tmp_path: Path) -> None:
    operator, password = Operator(), "a long password"
    good = operator.account("ORDERS").user("anna").credentials
    token, seed = good.splitlines()[1], good.splitlines()[5]
    texts = {"foreign": good, "no token": good.replace(token, ""), "no seed": good.replace(seed, "SU"), "open": good}
    async with await start_mesh(operator=Operator(), tls=Authority()) as mesh:
        where = mesh.connect_options()
        logins: list[dict[str, Any]] = [{"user": "anna", "password": password, "user_credentials": None}]
        logins += [{"token": password, "user_credentials": None}]
        for name, text in texts.items():
            path = tmp_path / f"{name}.creds"
            path.touch(mode=0o600)
            path.write_text(text)
            path.chmod(0o644 if name == "open" else 0o600)
            logins.append({"user_credentials": str(path)})
        for login in logins:
            with pytest.raises((LoginRefusedError, CredentialsError)) as caught:
                await connect({**where, **login}, within=5.0)  # type: ignore[typeddict-item]
            told = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
            assert [one for one in (password, token, seed) if one in told] == []
    assert [one for one in (token, seed) if one in repr(operator) + repr(operator.account("X").user("anna"))] == []


@pytest.mark.parametrize("number", ["10", "11", "15"])
def test_no_notebook_shows_a_secret(number: str) -> None:
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    for cell in nbformat.read(path, as_version=4).cells:
        text = cell.source + json.dumps(cell.get("outputs", []))
        assert secrets_in(text) == [], cell.id
        assert re.findall(r"://\w+:[\w-]{20,}@", text) == [], cell.id
