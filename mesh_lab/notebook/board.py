"""The board of a workshop's room in the trainer's notebook: what its page shows, asked for every second."""

import asyncio
import urllib.request
from typing import Any

from mesh_lab.errors import SettingsError

EVERY_S, REPLY_WITHIN_S = 1.0, 6.0
_following: set["asyncio.Task[None]"] = set()  # asyncio itself holds only weak references to tasks


def board(address: str) -> Any:
    """Return a widget that shows the board until its ``close()``; needs a running event loop, as a notebook has.

    Args:
        address: What ``mesh-lab workshop`` printed, token included.

    Raises:
        SettingsError: It is no such address.
    """
    import ipywidgets

    if not address.startswith("http://127.0.0.1:"):
        raise SettingsError(f"{address[:17]!r}…, expected the board's address, http://127.0.0.1:<port>/<token>/")
    box = ipywidgets.VBox([ipywidgets.HTML(), ipywidgets.Label()])
    task = asyncio.get_running_loop().create_task(_follow(f"{address.rstrip('/')}/now", box))
    _following.add(task)
    task.add_done_callback(_following.discard)
    return box


async def _follow(address: str, box: Any) -> None:
    drawing, state = box.children
    while box.comm is not None:
        drawn = await asyncio.to_thread(_read, address)
        drawing.value = drawn or drawing.value
        state.value = "" if drawn else "The room's desk does not answer; this is how it was."
        await asyncio.sleep(EVERY_S)


def _read(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=REPLY_WITHIN_S) as reply:  # noqa: S310  # of this machine, as above
            return str(reply.read().decode())
    except OSError:
        return ""
