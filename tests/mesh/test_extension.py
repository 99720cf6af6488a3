"""What %load_ext mesh_lab does, seen from notebooks that run in real kernels."""

import asyncio
import queue
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator

import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient

from mesh_lab.notebook import extension
from mesh_lab.servers.mesh import Mesh

SETUP = """
%load_ext mesh_lab
from mesh_lab import start_mesh
from mesh_lab.patterns.wait import eventually

mesh = await start_mesh(servers=3)
client = await mesh.connect()
"""
WORKER = """
%%service worker --replicas 3
async def main(nc):
    sub = await nc.subscribe("orders", queue="workers")
    async for msg in sub.messages:
        int(msg.data)
        await nc.publish("done", os.environ["SERVICE_NAME"].encode())
"""
PUBLISH = """
done = []
async def note(msg):
    done.append(msg.data.decode())
await client.subscribe("done", cb=note)
for number in range(30):
    await client.publish("orders", b"%d" % number)
await eventually(lambda: len(done) == 30, within=5)
"""
CRASH = """
await client.publish("orders", b"twelve")
await eventually(lambda: "crashed" in services["worker"].states.values(), within=5)
"""
CRASHING_CELL = """
%%service broken --replicas 2
async def main(nc):
    raise RuntimeError("no luck")
"""
TEARDOWN = """
await client.close()
await mesh.close()
services
"""


def outputs(*cells: str) -> list[list[str]]:
    """Run cells in a new kernel and return each one's visible outputs as text."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip("\n")) for cell in cells])
    NotebookClient(notebook, timeout=60, allow_errors=True, kernel_name="python3").execute()

    def text(output: nbformat.NotebookNode) -> str:
        if output.output_type == "stream":
            return f"{output.name}: {output.text}"
        if output.output_type == "error":
            return "\n".join(output.traceback)
        return str(output.data["text/plain"])

    return [[text(output) for output in cell.outputs] for cell in notebook.cells]


def test_a_first_cell_that_runs_again_leaves_no_servers_of_the_mesh_before() -> None:
    start = "%load_ext mesh_lab\nfrom mesh_lab import start_mesh\nmesh = await start_mesh(servers=1)\nmesh"
    count = textwrap.dedent("""
        import gc, psutil
        from mesh_lab.processes import OWNER_VARIABLE
        gc.collect()
        servers = [p for p in psutil.Process().children() if p.name() == "nats-server" and p.status() != "zombie"]
        len(servers)
    """)
    *_, counted, shown, _ = outputs(start, start, start, count, "_", "await mesh.close()")
    assert counted == ["1"]
    assert shown == ["1"]  # the history of what is no mesh is as ever


def test_a_notebook_runs_services_and_shows_what_crashes() -> None:
    shown = outputs(SETUP, WORKER, PUBLISH, CRASH, "services", CRASHING_CELL, TEARDOWN, "1 + 1")
    setup, worker, publish, crash, table, crashing_cell, teardown, after = shown
    assert setup == []
    assert worker == ["worker: 3 processes running"]
    assert publish == ["True"]
    assert len(crash) == 2
    crash.remove("True")
    name = crash[0].split()[1]
    assert name in ("worker-1", "worker-2", "worker-3")
    assert crash == [
        f"stdout: {name} crashed:\n"
        "Traceback (most recent call last):\n"
        '  File "<service worker>", line 5, in main\n'
        "    int(msg.data)\n"
        "ValueError: invalid literal for int() with base 10: b'twelve'\n"
    ]
    assert len(table) == 1
    assert f"{name}  crashed   ValueError: invalid literal" in table[0]
    assert crashing_cell == [
        "ProcessEndedError: broken-1 and broken-2 crashed:\n"
        "Traceback (most recent call last):\n"
        '  File "<service broken>", line 3, in main\n'
        '    raise RuntimeError("no luck")\n'
        "RuntimeError: no luck"
    ]
    assert teardown[0].count("stopped") == 2
    assert len(teardown) == 1, "services that end with their mesh have not crashed"
    assert after == ["2"]


ASYNC = "import asyncio\nasync def x():\n    await asyncio.sleep(0.05)\n    return 7"  # work


def test_asyncio_run_works_in_a_cell_however_often_the_extension_is_loaded() -> None:
    load, again, _, run, await_run, callback = outputs(
        "%load_ext mesh_lab",
        "%reload_ext mesh_lab",
        ASYNC,
        "asyncio.run(x())",
        "print(asyncio.run(x()), await x(), await asyncio.wait_for(x(), 1))",
        "import ipywidgets\nbutton = ipywidgets.Button()\n"
        "button.on_click(lambda _: print(asyncio.run(x())))\nbutton.click()",
    )
    assert (load, again, run) == ([], [], ["7"])
    assert await_run == ["stdout: 7 7 7\n"]
    assert callback == ["stdout: 7\n"]


@pytest.fixture
def kernel() -> Iterator[BlockingKernelClient]:
    manager, client = start_new_kernel(kernel_name="python3")
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)
    manager.cleanup_resources()


def test_cells_that_wait_in_the_queue_are_not_lost_while_another_runs_a_loop_of_its_own(
    kernel: BlockingKernelClient,
) -> None:
    # What "Run All" does, and nbclient does not: every cell is sent before the first has ended.
    cells = ["%load_ext mesh_lab", ASYNC, *["print(asyncio.run(x()))", "print(await x())"] * 3]
    sent = [kernel.execute(cell) for cell in cells]
    printed, ended = [], set()
    deadline = time.monotonic() + 20.0
    while not ended >= set(sent) and time.monotonic() < deadline:
        try:
            message = kernel.get_iopub_msg(timeout=1.0)
        except queue.Empty:
            continue
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            ended.add(message["parent_header"]["msg_id"])
    assert "".join(printed) == "7\n" * 6
    assert ended >= set(sent)


def test_the_magic_works_in_a_plain_shell_without_a_loop(mesh: Mesh, capsys: pytest.CaptureFixture[str]) -> None:
    shell = InteractiveShell()
    asyncio_run = asyncio.run
    try:
        for _ in range(2):
            extension.load(shell)
        assert asyncio.run is asyncio_run, "asyncio is patched only where a loop runs"
        shell.run_cell("%%service sleeper --replicas 2\nasync def main(nc):\n    await asyncio.Event().wait()\n")
        shell.run_cell("services.kill('sleeper', 1)")
        shell.run_cell("services.stop_all(); services")
        shown = capsys.readouterr().out
    finally:
        extension.services.stop_all()
        shell.history_manager.end_session()
    assert "sleeper: 2 processes running" in shown
    assert "sleeper: 1 process running, 1 killed" in shown
    assert "sleeper-1  killed\nsleeper-2  stopped" in shown


def test_importing_the_package_does_not_patch_asyncio() -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        run = asyncio.run
        import mesh_lab.notebook.extension
        assert asyncio.run is run
        assert not any(name.startswith("nest_asyncio") for name in sys.modules)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
