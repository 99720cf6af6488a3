"""The command ``mesh-lab``: everything that needs no notebook."""

import argparse
import asyncio
import os
import secrets
import subprocess
import sys
import tempfile
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import cast

MISSING = 'mesh-lab: the package {} is missing; pip install "mesh-lab[lab]", in a checkout: pip install -e ".[lab]"'
try:
    import nats.errors

    from mesh_lab import doctor
    from mesh_lab.chaos.schedule import FAULTS, OUTAGE_S, Kind
    from mesh_lab.errors import MeshLabError
    from mesh_lab.patterns.jetstream_api import stream_names
    from mesh_lab.processes import on_stop_signal
    from mesh_lab.servers import docker
    from mesh_lab.servers.backend import Backend, MeshRequest, traits_of
    from mesh_lab.servers.compose import Engine, Project
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
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.removeprefix("_"), help=words)
        added.set_defaults(run=run)
        return added

    lab = command(_lab, "open JupyterLab at the first notebook")
    lab.add_argument("--no-browser", action="store_true", help="print the URL and open nothing")
    command(_doctor, "check this machine and say how to fix what is missing")
    orders = command(_orders, "send all real orders through a mesh and check every total")
    orders.add_argument("--workers", type=_count, default=2, help="worker processes (default: 2)")
    orders.add_argument("--first", type=_count, metavar="N", help="only the first N orders")
    orders.add_argument("--file", type=_file, help="orders in the data set's format, instead of the data set")
    orders.add_argument("--kill-one", action="store_true", help="kill the stream's leader half-way and restart it")
    orders.add_argument("--docker", action="store_true", help="in containers, servers and services alike")
    orders.add_argument("--go", action="store_true", help="run it in Go, too, in turn on the same servers, and compare")
    bench = command(_bench, "measure each way of publishing and consuming, on servers of its own")
    bench.add_argument("--quick", action="store_true", help="the rungs that matter most, in under a minute")
    bench.add_argument("--json", action="store_true", help="print JSON instead of tables")
    bench.add_argument("--schema", action="store_true", help="print the JSON Schema of --json, and run nothing")
    bench.add_argument("--go", action="store_true", help="run the same in Go, too, in the same rounds, and compare")
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
    command(_down, "remove the containers, their network and their volumes")
    command(_status, "show the containers")

    options = parser.parse_args(arguments)
    if options.run is _chaos and (wrong := _wrong_in_chaos(options)):
        chaos.error(wrong)
    if options.run is _orders and options.go and (options.file or options.kill_one or options.docker):
        orders.error("--go compares on servers of its own; of the other options, it takes --workers and --first")
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
    if root is None:
        sys.stderr.write(f"mesh-lab lab: no {FIRST_NOTEBOOK} here; run it in the folder that you cloned\n")
        return 1
    command = [sys.executable, "-m", "jupyter", "lab", "--ip=127.0.0.1", f"--ServerApp.root_dir={root}"]
    command.append(f"--LabApp.default_url=/lab/tree/{FIRST_NOTEBOOK.as_posix()}")
    # So that opening a notebook does not change it.
    command.append("--ServerApp.contents_manager_class=mesh_lab.notebook.contents.LabContents")
    # Defaults, over which a user's own settings win: no question about news, no check for newer versions.
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


def _orders(options: argparse.Namespace) -> int:
    from mesh_lab.orders.job.report import run_beside_go, run_with_progress

    given = {name: getattr(options, name) for name in ("workers", "first", "file", "kill_one")}

    async def until_stopped() -> int:
        on_stop_signal(cast("asyncio.Task[int]", asyncio.current_task()).cancel)
        if options.go:
            return await run_beside_go(workers=options.workers, first=options.first)
        return await run_with_progress(**given, backend="docker" if options.docker else None)

    try:
        return asyncio.run(until_stopped())
    except asyncio.CancelledError:
        return 130


def _bench(options: argparse.Namespace) -> int:
    from mesh_lab.bench.command import print_schema, run_bench

    if options.schema:
        return print_schema()
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
