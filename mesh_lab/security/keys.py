"""Write what a secured deployment is given: ``python -m mesh_lab.security.keys keys``.

Into a new directory that only its owner opens: ``operator.conf`` for the servers, which holds no secret; a credentials
file for each role of :mod:`mesh_lab.security.roles`; one of the system account, which may send the servers other
accounts; and the seeds of the operator and of the accounts, which sign everything. Those belong offline. Without them
no user can be added, and none revoked. With ``--host n1 n2``, also a certificate for each of these servers, good for
ninety days, and that of the authority, whose key is kept nowhere.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from mesh_lab.errors import MeshLabError
from mesh_lab.security.accounts import Account, Operator
from mesh_lab.security.certificates import Authority, write_private
from mesh_lab.security.roles import ROLES, ROOM, Keyring

CERTIFIED_DAYS = 90


def write_keys(directory: Path, *, hosts: Sequence[str] = ()) -> Account:
    """Write them, with certificates for some hosts, and return the account of the orders.

    Raises:
        ValueError: A host is no host name and no IP address.
        StoreError: The directory is there already, or cannot be made.
    """
    operator = Operator()
    orders = operator.account("ORDERS", **ROOM)
    keyring = Keyring(orders, directory)
    for role in ROLES:
        keyring.file(role)
    accounts = (orders, operator.system)
    preload = "\n".join(f'  {account.public}: "{account.token()}"' for account in accounts)
    servers = f'operator: "{operator.token()}"\nsystem_account: {operator.system.public}\n'
    write_private(directory / "operator.conf", f"{servers}resolver_preload {{\n{preload}\n}}\n".encode())
    write_private(directory / "system.creds", operator.system.user("system").credentials.encode())
    for name, seed in (("operator", operator.key.seed), *((account.name, account.key.seed) for account in accounts)):
        write_private(directory / f"{name}.seed", seed.encode())
    authority = Authority()
    try:
        for host in hosts:
            authority.issue(directory, host, "localhost", "127.0.0.1", days=CERTIFIED_DAYS)
    except BaseException:
        shutil.rmtree(directory)  # all of it or nothing
        raise
    return orders


def main() -> int:
    """Write the keys into the directory that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m mesh_lab.security.keys", description=__doc__)
    parser.add_argument("directory", type=Path, help="a new one")
    parser.add_argument("--host", nargs="+", default=(), help="servers to certify, by host name or IP address")
    options = parser.parse_args()
    directory: Path = options.directory
    try:
        write_keys(directory, hosts=options.host)
    except (MeshLabError, ValueError) as err:
        sys.stderr.write(f"keys: {err}\n")
        return 1
    sys.stdout.write("\n".join(sorted(path.name for path in directory.iterdir())) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
