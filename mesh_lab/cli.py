"""The command ``mesh-lab``: everything that needs no notebook."""

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, cast

MISSING = 'mesh-lab: the package {} is missing; pip install "mesh-lab[lab]", in a checkout: pip install -e ".[lab]"'
try:
    import nats.errors
    from nats.aio.client import Client

    from mesh_lab import __version__, doctor
    from mesh_lab.chaos.schedule import FAULTS, OUTAGE_S, Kind
    from mesh_lab.course import carried, lay_out
    from mesh_lab.errors import MeshLabError
    from mesh_lab.patterns import connection
    from mesh_lab.patterns.addresses import CredentialsFile, options_from
    from mesh_lab.patterns.backup import ABOUT, Progress, backup_stream, restore_stream
    from mesh_lab.patterns.jetstream_api import stream_names
    from mesh_lab.processes import on_stop_signal
    from mesh_lab.servers import docker
    from mesh_lab.servers.backend import Backend, MeshRequest, traits_of
    from mesh_lab.servers.compose import Engine, Project
    from mesh_lab.servers.external import CREDS_VARIABLE, URL_VARIABLE
    from mesh_lab.servers.layout import plan
    from mesh_lab.servers.start import chosen_backend, start_mesh
except ModuleNotFoundError as missing:  # an install without its extra
    raise SystemExit(MISSING.format(missing.name)) from missing

SHORTEST_CHAOS_S = 3
LONGEST_RUNTIME_DIR = 50  # a socket's path has 103 bytes on macOS, 107 on Linux; a kernel's name takes 51
FIRST_NOTEBOOK = Path("notebooks") / "00_start_here.ipynb"


# Modules that draw tables are imported where they are needed: doctor has to run where rich is missing.
def main(arguments: list[str] | None = None) -> int:
    """Run the subcommand that the command line names and return the exit code."""
    parser = argparse.ArgumentParser(prog="mesh-lab", description="Build, measure and break an event mesh on NATS.")
    parser.add_argument("--version", action="version", version=f"mesh-lab {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.removeprefix("_"), help=words)
        added.set_defaults(run=run)
        return added

    lab = command(_lab, "open JupyterLab at the first notebook")
    lab.add_argument("--no-browser", action="store_true", help="print the URL and open nothing")
    command(_doctor, "check this machine and say how to fix what is missing")
    command(_progress, "show which exercises you solved on this machine, notebook by notebook")
    workshop = command(_workshop, "open a room for a workshop: its mesh, a line for each seat, the board")
    workshop.add_argument("--seats", type=_count, metavar="N", help="how many (default: 20, or as many as were kept)")
    workshop.add_argument("--name", default="the room", help="what the room is called")
    listen = "address of this machine on which participants' machines reach it (default: this machine alone)"
    workshop.add_argument("--listen", metavar="ADDRESS", help=listen)
    keep = "where the room outlives this command: opened from there again, it goes on (default: nothing is kept)"
    workshop.add_argument("--keep", type=Path, metavar="FOLDER", help=keep)
    workshop.add_argument("--lines", type=Path, metavar="FILE", help="write the seats' lines there, and print none")
    agenda = "a table as the trainer's handbook has them: the board shows the room's median beside it"
    workshop.add_argument("--agenda", type=Path, metavar="FILE", help=agenda)
    before = "the day before: try this machine with a seat by JupyterHub, as mesh-lab seats --check does, and end"
    workshop.add_argument("--check", action="store_true", help=before)
    join = command(_join, "join a workshop's room, which then sees how far your exercises are")
    join.add_argument(
        "line", nargs="?", help="the seat's line, from the trainer; read from standard input if not given"
    )
    join.add_argument("--as", dest="name", default="", metavar="NAME", help="the name that the board shows")
    join.add_argument("--leave", action="store_true", help="leave the room")
    orders = command(_orders, "send all real orders through a mesh and check every total")
    orders.add_argument("--workers", type=_count, default=2, help="worker processes (default: 2)")
    orders.add_argument("--first", type=_count, metavar="N", help="only the first N orders")
    orders.add_argument("--file", type=_file, help="orders in the data set's format, instead of the data set")
    orders.add_argument("--kill-one", action="store_true", help="kill the stream's leader half-way and restart it")
    orders.add_argument("--secure", action="store_true", help="with TLS, and for each process a user with few rights")
    orders.add_argument("--saga", action="store_true", help="by payment, stock and shipping, some of which fail")
    whole = "two regions and a store at the edge, the saga, locks and faults in one run; 10,000 orders, or --first"
    orders.add_argument("--world", action="store_true", help=whole)
    orders.add_argument("--seed", type=_count, help="of --world: what is bought where, cut off and lost; printed")
    orders.add_argument("--docker", action="store_true", help="in containers, servers and services alike")
    orders.add_argument("--go", action="store_true", help="run it in Go, too, in turn on the same servers, and compare")
    watched = "run it with metrics, traces and the map on, in turn with nothing on, and compare"
    orders.add_argument("--watched", action="store_true", help=watched)
    bench = command(_bench, "measure each way of publishing and consuming, on servers of its own")
    bench.add_argument("--quick", action="store_true", help="the rungs that matter most, in under a minute")
    bench.add_argument("--json", action="store_true", help="print JSON instead of tables")
    bench.add_argument("--schema", action="store_true", help="print the JSON Schema of --json, and run nothing")
    bench.add_argument("--go", action="store_true", help="run the same in Go, too, in the same rounds, and compare")
    scale = "instead: by workers, partitions, streams and payload; and what 1 to 12 servers cost"
    bench.add_argument("--scale", action="store_true", help=scale)
    ladders = ("publish", "consume", "end to end")
    bench.add_argument("--ladder", action="append", choices=ladders, help="only this one; may be repeated")
    chaos = command(_chaos, "break servers of its own while orders are written, and look for losses")
    chaos.add_argument(
        "--seed", type=_count, help="seed of the faults; printed, and another one each time if not given"
    )
    chaos.add_argument("--seconds", type=_count, help="how long (default: 60; from start to each power cut: 8)")
    chaos.add_argument("--minutes", type=_count, help="how long, instead of --seconds")
    chaos.add_argument(
        "--fault", action="extend", type=_faults, metavar="KIND[,KIND]", help=f"only these: {', '.join(FAULTS)}"
    )
    outage = f"how long a loss of quorum lasts, up to half of the run (default: {OUTAGE_S:g})"
    chaos.add_argument("--outage", type=_count, metavar="SECONDS", help=outage)
    chaos.add_argument("--report", type=Path, metavar="PATH", help="write a report to PATH.html and PATH.json")
    chaos.add_argument("--campaign", type=_count, metavar="N", help="N short runs of each kind, from the seeds 1 to N")
    chaos.add_argument("--jobs", type=_count, default=1, help="runs of a campaign side by side (default: 1)")
    chaos.add_argument("--power-cut", action="store_true", help="cut the power instead, which needs Linux and root")
    up = command(_up, "start three servers in containers, or join those that run")
    up.add_argument("--docker", action="store_true", required=True, help="the only place where a mesh outlives you")
    clear = command(_clear, "remove streams of the account that MESH_LAB_URL names, or of the containers; asks first")
    clear.add_argument("stream", nargs="*", help="only these; all of them if none is named")
    clear.add_argument("--docker", action="store_true", help="on the containers")
    clear.add_argument("--yes", action="store_true", help="do not ask")
    backup = command(_backup, "save streams with their consumers, of any NATS, in a folder for each")
    backup.add_argument("stream", nargs="*", help="only these; all of the account's if none is named")
    backup.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the streams' folders are made")
    restore = command(_restore, "make streams again from their backups, with checksums compared; no stream is replaced")
    restore.add_argument("folder", type=Path, nargs="+", help="a stream's folder, or the one that backup --to named")
    restore.add_argument("--replicas", type=_count, help="copies that the streams get (default: as many as they had)")
    for either in (backup, restore):
        either.add_argument("--url", help=f"addresses of the servers, with the user (default: {URL_VARIABLE})")
        either.add_argument("--creds", type=_file, help=f"credentials file (default: {CREDS_VARIABLE})")
    seats = command(
        _seats, "start JupyterHub with seats for a workshop: each with the course, a kernel and meshes of its own"
    )
    seats.add_argument("--seats", type=_count, default=20, metavar="N", help="how many (default: 20)")
    seats.add_argument(
        "--check", action="store_true", help="the day before: try this machine with one of them, and end"
    )
    place = "where homes and codes stay, to be named again for the same seats (default: mesh-lab-seats)"
    seats.add_argument("--folder", type=Path, help=place)
    apart = "users: by the system, root's default on Linux; containers: by Docker; none: for people whom you trust"
    seats.add_argument("--isolation", choices=("users", "containers", "none"), help=apart)
    listen = "open them to a network by this address, over TLS only (default: 127.0.0.1, this machine alone)"
    seats.add_argument("--listen", default="127.0.0.1", metavar="ADDRESS", help=listen)
    seats.add_argument("--port", type=_count, default=8000, help="and the two after it, for this machine alone")
    seats.add_argument("--certificate", type=_file, metavar="FILE", help="of the address, in PEM")
    seats.add_argument("--key", type=_file, metavar="FILE", help="of the certificate, in PEM")
    seats.add_argument("--lines", type=_file, metavar="FILE", help="what mesh-lab workshop --lines wrote: seats join")
    memory = "MiB of memory for each process of a seat (default: 2048)"
    seats.add_argument("--memory", type=_count, default=2048, metavar="MIB", help=memory)
    idle = "minutes after which an idle kernel ends, and then an idle seat's server (default: 120)"
    seats.add_argument("--idle", type=_count, default=120, metavar="MINUTES", help=idle)
    top = command(_top, "show what servers report, once a second, until Ctrl-C")
    top.add_argument("monitor", nargs="*", help="HOST:PORT of their monitoring; your local meshes if none is named")
    top.add_argument("--once", action="store_true", help="show it once")
    command(_down, "remove the containers, their network and their volumes")
    command(_status, "show the containers")

    options = parser.parse_args(arguments)
    if options.run is _chaos and (wrong := _wrong_in_chaos(options)):
        chaos.error(wrong)
    if options.run is _orders and (wrong := _wrong_in_orders(options)):
        orders.error(wrong)
    try:
        code: int = options.run(options)
    except (MeshLabError, nats.errors.Error, OSError) as err:  # the latter two: files, and servers that refuse
        sys.stderr.write(f"mesh-lab {options.command}: {str(err) or repr(err)}\n")
        return 1
    except ModuleNotFoundError as err:
        sys.stderr.write(f"{MISSING.format(err.name)}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number from 1")
    return int(text)


def _faults(text: str) -> list[Kind]:
    found = {name.strip().replace("-", " ") for name in text.split(",")}
    if unknown := found - set(FAULTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))!r}, expected some of {', '.join(FAULTS)}")
    return [kind for kind in FAULTS if kind in found]


def _wrong_in_orders(options: argparse.Namespace) -> str | None:
    """Return which of the options do not go together."""
    more = any((options.file, options.kill_one, options.docker, options.secure, options.saga))
    if (options.go or options.watched) and (more or options.world or (options.go and options.watched)):
        which = "--go" if options.go else "--watched"
        return f"{which} compares on servers of its own; of the other options, it takes --workers and --first"
    if (options.world and more) or (options.seed and not options.world):
        return "--world has all of it on servers of its own: it takes --seed and --first; --seed is for it alone"
    return None


def _wrong_in_chaos(options: argparse.Namespace) -> str | None:
    """Return which of the options do not go together."""
    if options.seconds and options.minutes:
        return "--seconds and --minutes both say how long; give one"
    if options.power_cut and (options.seed or options.fault or options.campaign or options.report):
        return "--seed, --fault, --campaign and --report are for runs of faults; --power-cut is one of its own"
    if options.campaign and (options.seed or options.seconds or options.minutes or options.outage):
        return "--campaign chooses seeds and lengths itself"
    if not options.power_cut and options.seconds and options.seconds < SHORTEST_CHAOS_S:
        return f"--seconds {options.seconds}, expected {SHORTEST_CHAOS_S} or more: no fault fits into less"
    return None


def _file(text: str) -> Path:
    if not (path := Path(text)).is_file():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a file that is there")
    return path


def _lab(options: argparse.Namespace) -> int:
    root = next((p for p in (Path.cwd(), Path(__file__).parents[1]) if (p / FIRST_NOTEBOOK).is_file()), None)
    if root is None:  # an installed package, which carries the course
        root = Path.cwd() / "mesh-lab-course"
        laid = lay_out(root, carried())
        sys.stdout.write(f"The course is in {root}: {len(laid.written)} files were written.\n")
        if laid.kept:
            kept = ", ".join(laid.kept)
            sys.stdout.write(f"You changed {kept}. To have this version's, rename yours and run mesh-lab lab again.\n")
    command = [sys.executable, "-m", "jupyter", "lab", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command.append(f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK.as_posix()}")
    # No question about news, no check for newer versions, over which a user's own settings win; and opening a notebook
    # does not change it.
    os.environ["JUPYTER_CONFIG_PATH"] = doctor.before(os.environ.get("JUPYTER_CONFIG_PATH"))
    # But this environment's kernel, whatever else is called `python3` on this machine.
    os.environ["JUPYTER_PATH"] = doctor.before(os.environ.get("JUPYTER_PATH"))
    command += _private_kernels()
    try:
        opens = not options.no_browser and bool(doctor.graphical_browser())
    except webbrowser.Error:
        opens = False
    if not opens:
        command.append("--no-browser")
        sys.stdout.write("No browser is opened. Copy the URL that JupyterLab prints below, token included.\n")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        # Jupyter refuses root otherwise, and a container or a fresh cloud machine often has no other user.
        command.append("--allow-root")
        sys.stdout.write("You are root: what a notebook does, it does as root.\n")
    sys.stdout.flush()
    if sys.platform == "win32":
        return subprocess.call(command, cwd=root)
    # JupyterLab takes this process's place, so that a signal to end reaches it and its kernels.
    os.chdir(root)
    os.execv(command[0], command)  # noqa: S606  # no shell, and none is wanted


def _private_kernels() -> list[str]:
    """Return arguments with which kernels listen on sockets of the user alone, and not on ports that all can reach."""
    if sys.platform == "win32":
        return []
    from jupyter_core.paths import jupyter_runtime_dir

    if len(jupyter_runtime_dir()) > LONGEST_RUNTIME_DIR:
        os.environ["JUPYTER_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="jupyter-", dir="/tmp")  # private
    return ["--KernelManager.transport=ipc"]


def _doctor(options: argparse.Namespace) -> int:
    return doctor.run()


def _progress(options: argparse.Namespace) -> int:
    from mesh_lab.notebook.exercises import progress

    if not (found := progress()).notebooks:
        sys.stderr.write("mesh-lab progress: no exercises here; run it in the folder notebooks/ that you cloned\n")
        return 1
    sys.stdout.write(f"{found!r}\n")
    return 0


def _workshop(options: argparse.Namespace) -> int:
    if options.check:
        from mesh_lab.seats import check, start

        asked = start.Workshop(seats=options.seats or 20, folder=start.FOLDER, address=options.listen or start.HERE)
        return doctor.show(check.examine(asked))
    from mesh_lab.notebook.exercises import titles
    from mesh_lab.workshop.command import run_workshop

    if not (exercises := titles()):
        sys.stderr.write("mesh-lab workshop: no exercises here; run it in the folder notebooks/ that you cloned\n")
        return 1
    given = {name: getattr(options, name) for name in ("seats", "name", "listen", "keep", "lines", "agenda")}
    return run_workshop(exercises=exercises, **given)


def _join(options: argparse.Namespace) -> int:
    from mesh_lab.workshop.command import run_join

    text = "" if options.leave else options.line or sys.stdin.read()
    return run_join(text, name=options.name, leaving=options.leave)


def _orders(options: argparse.Namespace) -> int:
    from mesh_lab.orders.job.report import run_beside_go, run_whole_world, run_with_progress
    from mesh_lab.orders.job.watched import run_watched

    given = {name: getattr(options, name) for name in ("workers", "first", "file", "saga", "kill_one", "secure")}

    async def until_stopped() -> int:
        on_stop_signal(cast("asyncio.Task[int]", asyncio.current_task()).cancel)
        if options.world:
            return await run_whole_world(seed=options.seed or secrets.randbelow(1_000_000) + 1, first=options.first)
        if options.watched:
            return await run_watched(workers=options.workers, first=options.first)
        if options.go:
            return await run_beside_go(workers=options.workers, first=options.first)
        return await run_with_progress(**given, backend="docker" if options.docker else None)

    try:
        return asyncio.run(until_stopped())
    except asyncio.CancelledError:
        return 130


def _bench(options: argparse.Namespace) -> int:
    from mesh_lab.bench.command import print_schema, run_bench, show_scale

    if options.schema:
        return print_schema()
    if options.scale:
        return show_scale(quick=options.quick, as_json=options.json)
    return run_bench(quick=options.quick, as_json=options.json, go=options.go, ladders=options.ladder or ())


def _chaos(options: argparse.Namespace) -> int:
    from mesh_lab.chaos.command import run_campaign, run_chaos, run_power_cuts

    seconds = 60.0 * options.minutes if options.minutes else float(options.seconds or (8 if options.power_cut else 60))
    kinds = options.fault or ()
    if options.power_cut:
        return run_power_cuts(seconds=seconds)
    if options.campaign:
        return run_campaign(seeds=options.campaign, jobs=options.jobs, kinds=kinds, report=options.report)
    seed, outage = options.seed or secrets.randbelow(1_000_000) + 1, float(options.outage or OUTAGE_S)
    return run_chaos(seed=seed, seconds=seconds, outage=outage, kinds=kinds, report=options.report)


def _up(options: argparse.Namespace) -> int:
    async def up() -> None:
        async with await docker.start(MeshRequest(plan(3), within=60.0)) as mesh:
            sys.stdout.write(
                f"{mesh!r}\n"
                f"clients:    {', '.join(mesh.urls)} (user lab; its password is in {mesh.project.variables})\n"
                "notebook:   mesh = await start_mesh(servers=3, backend='docker'); "
                "or MESH_LAB_BACKEND=docker for all of them\n"
                "main job:   mesh-lab orders --docker\n"
                "remove it:  mesh-lab down\n"
            )

    sys.stdout.write("Starting three servers; the first time, their image is fetched.\n")
    sys.stdout.flush()
    asyncio.run(up())
    return 0


def _clear(options: argparse.Namespace) -> int:
    async def clear() -> str:
        backend: Backend = "docker" if options.docker else chosen_backend()
        if traits_of(backend).temporary:
            return "nothing to clear: local servers take their streams with them; MESH_LAB_URL is not set"
        async with await start_mesh(backend=backend) as mesh:
            client = await mesh.connect(name="clear")
            js, names = client.jetstream(timeout=10.0), options.stream or await stream_names(client)
            for name in names:
                info = await js.stream_info(name)
                sys.stdout.write(f"{name}: {info.state.messages:,} messages, {', '.join(info.config.subjects or ())}\n")
            if names and not options.yes:
                sys.stdout.write("Remove, with all messages? [y/N] ")
                sys.stdout.flush()
                if (await asyncio.to_thread(sys.stdin.readline)).strip().lower() not in ("y", "yes"):
                    return "nothing was removed"
            for name in names:
                await js.delete_stream(name)
            return f"removed {', '.join(names)}" if names else "nothing to clear: the account holds no streams"

    sys.stdout.write(f"{asyncio.run(clear())}\n")
    return 0


def _backup(options: argparse.Namespace) -> int:
    async def save(client: Client, follow: Callable[[str], Progress]) -> None:
        for name in options.stream or await stream_names(client):
            saved = await backup_stream(client, name, options.to, progress=follow(name))
            _print_stream("saved", saved.config, saved.state, f"in {options.to / name}")

    return _with_progress(options, save)


def _restore(options: argparse.Namespace) -> int:
    async def restore(client: Client, follow: Callable[[str], Progress]) -> None:
        for folder in options.folder:
            for one in [found.parent for found in sorted(folder.glob(f"*/{ABOUT}"))] or [folder]:
                made = await restore_stream(client, one, replicas=options.replicas, progress=follow(one.name))
                _print_stream("restored", made.config, made.state, f"from {one}")

    return _with_progress(options, restore)


def _print_stream(done: str, config: dict[str, Any], state: dict[str, Any], where: str) -> None:
    what = f"{state['messages']:,} messages, consumers: {state.get('consumer_count', 0)}"
    sys.stdout.write(f"{done} {config['name']}: {what}, {where}\n")
    sys.stdout.flush()


def _with_progress(
    options: argparse.Namespace, work: Callable[[Client, Callable[[str], Progress]], Coroutine[Any, Any, None]]
) -> int:
    """Connect to the servers that the options name, do the work under a progress bar for each stream, and return 0."""
    from rich import progress
    from rich.console import Console

    async def until_stopped() -> None:
        on_stop_signal(cast("asyncio.Task[None]", asyncio.current_task()).cancel)
        given = options_from(options.url or os.environ.get(URL_VARIABLE, ""), setting=f"--url, {URL_VARIABLE}")
        if creds := options.creds or os.environ.get(CREDS_VARIABLE):
            CredentialsFile(creds, setting=f"--creds, {CREDS_VARIABLE}")
            given["user_credentials"] = str(creds)
        client = await connection.connect(given, name=f"mesh-lab {options.command}")
        columns = ("{task.description}", progress.BarColumn(), progress.DownloadColumn())
        try:
            with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bars:

                def follow(name: str) -> Progress:
                    task = bars.add_task(name, total=None)
                    return lambda done, total: bars.update(task, completed=done, total=total)

                await work(client, follow)
        finally:
            await connection.close(client)

    try:
        asyncio.run(until_stopped())
    except asyncio.CancelledError:
        return 130
    return 0


def _seats(options: argparse.Namespace) -> int:
    from mesh_lab.seats import check, start

    workshop = start.Workshop(
        seats=options.seats, folder=options.folder or start.FOLDER, isolation=options.isolation, address=options.listen,
        port=options.port, certificate=options.certificate, key=options.key, lines=options.lines,
        process_bytes=options.memory * 2**20, idle_s=options.idle * 60.0,
    )  # fmt: skip
    return doctor.show(check.examine(workshop)) if options.check else start.run(workshop)


def _top(options: argparse.Namespace) -> int:
    from mesh_lab.top import show

    return show(options.monitor, once=options.once)


def _down(options: argparse.Namespace) -> int:
    project = Project(Engine.find())
    removed = project.down()
    stays = f"; {project.variables} stays" if project.variables.exists() else ""
    sys.stdout.write(f"removed {removed}{stays}\n")
    return 0


def _status(options: argparse.Namespace) -> int:
    lines = []
    for container in Project(Engine.find()).containers():
        ports = ", ".join(f"127.0.0.1:{port} for {inside}" for inside, port in container.ports.items())
        lines.append(f"{container.name:14} {container.status:8} {container.health:10} {ports}".rstrip())
    sys.stdout.write("\n".join(lines or ["nothing is up; start it with: mesh-lab up --docker"]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
