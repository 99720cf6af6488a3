"""Seats for a workshop: a JupyterHub on one machine, with a home, a kernel and meshes of its own for each participant.

Everything that outlives the hub is in one folder: the seats' homes, and in ``hub/`` the codes, the settings and the
hub's own state. The same folder given again brings the same seats back.
"""

import json
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

import psutil

from mesh_lab import __version__
from mesh_lab.errors import ProcessEndedError, SettingsError
from mesh_lab.processes import ChildProcess
from mesh_lab.seats.api import HubApi
from mesh_lab.security.certificates import Authority, write_private
from mesh_lab.servers.workspace import is_free

Isolation: TypeAlias = Literal["users", "containers", "none"]
HERE, FOLDER, TRAINER = "127.0.0.1", Path("mesh-lab-seats"), "trainer"
# Digits and letters that nobody confuses when they are read aloud or from the wall.
LETTERS = "23456789abcdefghjkmnpqrstuvwxyz"
CODE_GROUPS, CODE_GROUP = 3, 4  # 59 bits: nobody guesses one over a network
# Above every account, and above what containers and user namespaces are given: https://systemd.io/UIDS-GIDS
FIRST_UIDS = range(1_900_000_000, 2_100_000_000, 1_000)
MOST_SEATS = 199  # with the trainer, as many as the hub lists in one answer
HUB_WITHIN_S, SEAT_WITHIN_S, STOP_WITHIN_S, TRIAL_WITHIN_S = 60.0, 180.0, 120.0, 60.0
SETTINGS = Path(__file__).with_name("settings.toml")
INSTALL = 'pip install "mesh-lab[lab,workshop]", in a checkout: make workshop'


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What was asked for."""

    seats: int
    folder: Path
    isolation: Isolation | None = None
    """What keeps seats apart, ``None`` for users where that is possible."""
    address: str = HERE
    port: int = 8000
    """The first of three; the two after it are for this machine alone."""
    certificate: Path | None = None
    key: Path | None = None
    lines: Path | None = None
    """A file with a line for each seat, which joins the room's mesh with it."""
    process_bytes: int = 2 * 2**30
    idle_s: float = 2 * 3600.0

    @property
    def names(self) -> list[str]:
        """The participants' seats."""
        return [f"seat-{number:02}" for number in range(1, self.seats + 1)]

    @property
    def url(self) -> str:
        """Where people open it."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{'https' if self.certificate else 'http'}://{host}:{self.port}"


def run(workshop: Workshop) -> NoReturn:
    """Start the hub and its seats, say where they are, and stay until Ctrl-C or SIGTERM, as a KeyboardInterrupt.

    Raises:
        ProcessEndedError: The hub ended by itself.
        MeshLabError: It could not be started, as :func:`serving`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with serving(workshop) as hub:
        began = time.monotonic()
        for warning in warnings_of(workshop):
            sys.stdout.write(f"{warning}\n")
        sys.stdout.write(
            f"{hub.url}  takes people to their seats; the codes: {workshop.folder / 'hub' / 'codes.txt'}\n"
        )
        sys.stdout.flush()
        hub.start(*workshop.names, within=SEAT_WITHIN_S)
        sys.stdout.write(f"{workshop.seats} seats run, after {time.monotonic() - began:.0f} s. Ctrl-C ends them.\n")
        sys.stdout.flush()
        hub.process.rest(within=float(10**9))
        code = hub.process.exit_code
        raise ProcessEndedError(
            f"the hub ended by itself, exit code {code}; its log: {workshop.folder / 'hub' / 'hub.log'}. The seats run "
            "on, within reach; the same command starts the hub again, and it finds them as they are",
            name="the hub",
            exit_code=code,
        )


def warnings_of(workshop: Workshop) -> list[str]:
    """Return what a trainer should know of these settings."""
    said = []
    if chosen_isolation(workshop) == "none":
        said.append("Nothing keeps the seats apart: each can do what you can on this machine, with your files, too.")
    if not only_here(workshop.address):
        said.append(f"Open to whoever reaches {workshop.address}, port {workshop.port}, over TLS, and knows a code.")
        if not workshop.certificate:
            made = (workshop.folder / "hub" / f"{workshop.address}.crt").read_text()
            der = ssl.PEM_cert_to_DER_cert(made.partition("-----END")[0] + "-----END CERTIFICATE-----")
            prints = sha256(der).digest().hex(":").upper()
            said.append(f"Browsers will not know its certificate, made for a day; its SHA-256 fingerprint: {prints}")
    return said


def chosen_isolation(workshop: Workshop) -> Isolation:
    """Return what keeps the seats apart.

    Raises:
        SettingsError: Nobody chose, and the safe way is not to be had.
    """
    root = sys.platform.startswith("linux") and os.geteuid() == 0
    if workshop.isolation is None and not root:
        raise SettingsError(
            "seats would run as you, and could read and change all that you can; as root on Linux each has a user of "
            "its own: sudo; with Docker: --isolation containers; for people whom you trust with it: --isolation none"
        )
    if workshop.isolation == "users" and not root:
        raise SettingsError("--isolation users needs root on Linux: only root starts processes of other users")
    return workshop.isolation or "users"


@contextmanager
def serving(workshop: Workshop) -> Iterator[HubApi]:
    """Run a hub for as long as the context lasts, and yield the trainer's way to command it.

    Raises:
        SettingsError: The settings do not go together, or another hub has the ports or the folder.
        NotReadyError: The hub did not answer in time.
        ProcessEndedError: It ended; the message has the end of its log.
    """
    _refuse_what_cannot_be(workshop)
    _make_folders(workshop)
    workshop = _with_certificate(workshop)
    token = _prepare(workshop)
    hub = workshop.folder / "hub"
    command = [sys.executable, "-m", "jupyterhub", "-f", str(hub / "settings.json")]
    process = ChildProcess(command, name="the hub", log=hub / "hub.log").start()
    try:
        trust = None
        if workshop.certificate:
            trust = ssl.create_default_context(cafile=str(workshop.certificate))
            # This very certificate, whoever signed it; and the address need not be in it.
            trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            trust.check_hostname = False
        api = HubApi(workshop.url, token, process, trust)
        api.wait_up(within=HUB_WITHIN_S)
        yield api
    finally:
        process.request_stop()
        if not process.wait(within=STOP_WITHIN_S):
            sys.stderr.write(f"The hub did not end within {STOP_WITHIN_S:g} s and was killed; its log: {hub}/hub.log\n")
        process.close()


def only_here(address: str) -> bool:
    """Return whether an address is one that only this machine reaches."""
    try:
        given = ip_address(address)
    except ValueError as err:
        raise SettingsError(f"--listen {address}: expected an address such as 192.168.0.10") from err
    if given.is_unspecified:
        raise SettingsError(f"--listen {address}: expected one address of this machine, which its certificate names")
    return given.is_loopback


def _refuse_what_cannot_be(workshop: Workshop) -> None:
    needed = ["jupyterhub", "configurable_http_proxy"]
    if chosen_isolation(workshop) == "containers":
        needed.append("dockerspawner")
    if missing := [name for name in needed if find_spec(name) is None]:
        raise SettingsError(f"the packages for seats are not here ({', '.join(missing)}); {INSTALL}")
    if workshop.seats > MOST_SEATS:
        raise SettingsError(f"--seats {workshop.seats}, expected up to {MOST_SEATS}")
    if bool(workshop.certificate) != bool(workshop.key):
        raise SettingsError("--certificate and --key belong together; give both or neither")
    hub = workshop.folder / "hub"
    if (running := _running(hub / "hub.pid")) is not None:
        raise SettingsError(f"a hub runs on {workshop.folder} already, process {running}; end that one first")
    # The proxy of a hub that was killed is still there, and keeps the seats within reach; the next hub replaces it.
    busy = [port for port in range(workshop.port, workshop.port + 3) if not is_free(port)]
    if busy and _running(hub / "proxy.pid") is None:
        raise SettingsError(
            f"port {busy[0]} is taken, and the hub needs {workshop.port} to {workshop.port + 2}: end what listens "
            "there, or choose others with --port"
        )


def _running(pid_file: Path) -> int | None:
    """Return the process that a file names, if it is one of a hub's and runs."""
    try:
        process = psutil.Process(int(pid_file.read_text()))
        ours = any(word in " ".join(process.cmdline()) for word in ("jupyterhub", "mesh_lab.seats.proxy"))
    except (OSError, ValueError, psutil.Error):
        return None
    return process.pid if ours else None


def _with_certificate(workshop: Workshop) -> Workshop:
    """Return the workshop with a certificate for the day, where it is open to a network and has none."""
    if workshop.certificate or only_here(workshop.address):
        return workshop
    made = Authority("workshop").issue(workshop.folder / "hub", workshop.address)
    return replace(workshop, certificate=Path(str(made.certificate)), key=Path(str(made.key)))


def _prepare(workshop: Workshop) -> str:
    """Make the folder what the hub needs, its settings among it, and return the trainer's token."""
    isolation = chosen_isolation(workshop)
    folder, hub = workshop.folder, workshop.folder / "hub"
    people = [TRAINER, *workshop.names]
    record = hub / "record.json"
    known: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    first_uid = known.setdefault("first_uid", secrets.choice(FIRST_UIDS)) if isolation == "users" else 0
    codes = known.setdefault("codes", {})
    for name in people:
        codes.setdefault(name, "-".join(_word() for _ in range(CODE_GROUPS)))
        if isolation != "containers":
            _make_home(folder / name, first_uid + people.index(name) if first_uid else None)
    write_private(record, json.dumps(known).encode())
    write_private(hub / "codes.txt", "".join(f"{name} {codes[name]}\n" for name in people).encode())
    if first_uid:
        _try_as_user(first_uid, folder / TRAINER)
    token, reached, spawner = secrets.token_hex(32), HERE, "mesh_lab.seats.hub.SeatSpawner"
    if isolation == "containers":
        from mesh_lab.seats import containers

        reached, spawner = containers.gateway(), "mesh_lab.seats.containers.SeatContainer"
    settings = _settings(workshop, {name: codes[name] for name in people}, token, reached, first_uid)
    settings["JupyterHub"]["spawner_class"] = spawner
    write_private(hub / "settings.json", json.dumps(settings, indent=1).encode())
    return token


def _make_folders(workshop: Workshop) -> None:
    """Make the folder, which seats may pass through and not list, and in it the hub's own."""
    if not workshop.folder.exists():
        workshop.folder.mkdir(parents=True)
        workshop.folder.chmod(0o711)  # whatever the umask says
    (workshop.folder / "hub").mkdir(mode=0o700, exist_ok=True)


def _word() -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(CODE_GROUP))


def _make_home(home: Path, uid: int | None) -> None:
    home.mkdir(mode=0o700, exist_ok=True)
    owner = home.lstat().st_uid
    if uid is not None and owner != uid and sys.platform != "win32":
        if any(home.iterdir()):
            raise SettingsError(f"{home} belongs to user {owner}, not to this seat ({uid}); name another --folder")
        os.chown(home, uid, uid)


def _try_as_user(uid: int, home: Path) -> None:
    """See that a seat's user can run this Python and enter its home."""
    program = "import os, sys, zmq, mesh_lab.course; os.chdir(sys.argv[1]); os.listdir('.')"
    try:
        subprocess.run(
            [sys.executable, "-c", program, str(home)], user=uid, group=uid, extra_groups=(), cwd="/",
            capture_output=True, text=True, timeout=TRIAL_WITHIN_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as err:
        seen = getattr(err, "stderr", None) or str(err)
        raise SettingsError(
            f"a seat's user cannot run {sys.executable} or enter {home}: {seen.strip().splitlines()[-1]}; both have to "
            "lie where every user may go, such as /opt and /srv, and not below /root"
        ) from err


def _lines(workshop: Workshop) -> dict[str, str]:
    """Return what each seat joins the room's mesh with."""
    lines = workshop.lines.read_text(encoding="utf-8").splitlines() if workshop.lines else []
    if workshop.lines and len(lines) < workshop.seats:
        raise SettingsError(f"{workshop.lines} has {len(lines)} lines, expected one for each of {workshop.seats} seats")
    return dict(zip(workshop.names, lines, strict=False))


def _settings(
    workshop: Workshop, codes: dict[str, str], token: str, reached: str, first_uid: int
) -> dict[str, dict[str, Any]]:
    """Return JupyterHub's settings; ``reached`` is the address of this machine for seats.

    The proxy, which reads what comes from a network, goes on as a user that owns nothing, where there are users.
    """
    folder, hub = workshop.folder.absolute(), workshop.folder.absolute() / "hub"
    settings: dict[str, dict[str, Any]] = tomllib.loads(SETTINGS.read_text(encoding="utf-8"))
    settings["JupyterHub"] |= {
        "bind_url": workshop.url,
        "hub_bind_url": f"http://{reached}:{workshop.port + 1}",
        "ssl_cert": str(workshop.certificate.absolute()) if workshop.certificate else "",
        "ssl_key": str(workshop.key.absolute()) if workshop.key else "",
        "db_url": f"sqlite:///{hub}/hub.sqlite",
        "cookie_secret_file": str(hub / "cookie_secret"),
        "pid_file": str(hub / "hub.pid"),
        "services": [{"name": "workshop", "api_token": token}],
    }
    proxy = [sys.executable, "-m", "mesh_lab.seats.proxy", *(["--user", str(first_uid - 1)] if first_uid else [])]
    settings["ConfigurableHTTPProxy"] = {
        "command": proxy,
        "api_url": f"http://{HERE}:{workshop.port + 2}",
        "pid_file": str(hub / "proxy.pid"),
    }
    settings["Authenticator"]["allowed_users"] = sorted(codes)
    settings["CodeAuthenticator"] = {"codes": codes}
    settings["Spawner"]["args"] += [
        f"--MappingKernelManager.cull_idle_timeout={workshop.idle_s:.0f}",
        f"--ServerApp.shutdown_no_activity_timeout={workshop.idle_s:.0f}",
    ]
    if hasattr(os, "geteuid") and os.geteuid() == 0 and workshop.isolation == "none":
        settings["Spawner"]["args"].append("--allow-root")
    settings["SeatSpawner"] |= {
        "folder": str(folder),
        "first_uid": first_uid,
        "seats": {name: number for number, name in enumerate(codes)},
        "process_bytes": workshop.process_bytes,
        "cmd": [sys.executable, "-m", "mesh_lab.seats.seat"],
        "notebook_dir": f"{folder}/{{username}}",
    }
    settings["SeatContainer"] |= {"image": f"mesh-lab-seat:{__version__}", "mem_limit": workshop.process_bytes}
    settings["SeatContainer"]["lines"] = settings["SeatSpawner"]["lines"] = _lines(workshop)
    return settings
