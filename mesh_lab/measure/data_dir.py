"""The directory for what this machine keeps between notebooks: results and the progress of exercises."""

import os
from pathlib import Path

from mesh_lab.errors import StoreError

HOME_VARIABLE = "MESH_LAB_HOME"


def data_dir() -> Path:
    """Return the directory, made for its owner alone (mode 0700) if it is not there yet.

    It is the one that ``MESH_LAB_HOME`` names; without that variable, the place where the platform keeps a
    user's data. A directory that exists already keeps its mode.

    Raises:
        StoreError: It cannot be made or written.
    """
    named = os.environ.get(HOME_VARIABLE)
    if named:
        place = Path(named).expanduser().absolute()
    else:
        from platformdirs import user_data_path

        place = user_data_path("mesh-lab", appauthor=False)
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as err:
        raise StoreError(
            f"cannot make the directory {place} for this machine's results: {err.strerror or err}; "
            f"name another one with the variable {HOME_VARIABLE}"
        ) from err
    if not os.access(place, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(
            f"the directory {place} for this machine's results cannot be written; "
            f"make it writable, or name another one with the variable {HOME_VARIABLE}"
        )
    return place
