"""Every error that the package raises, in one tree.

Each is also the nearest built-in kind, so that ``except TimeoutError`` or ``except ValueError`` does what a
reader expects. A message says what happened with its numbers, what was expected, and what to do.

::

    MeshLabError
    ├── NoServerBinaryError (FileNotFoundError)   no nats-server that is new enough was found
    ├── NoEngineError (ConnectionError)           no Docker engine answers, or Compose 2 is missing
    ├── SettingsError (ValueError)                docker/ or its .env is not as the containers need it
    ├── NoNatsCliError (FileNotFoundError)        the nats command-line tool was asked for and is not installed
    ├── ProcessEndedError (ChildProcessError)     a child process ended while it was needed, or failed
    │   ├── ServerExitedError                     a server is not running, or ended by itself
    │   └── EngineRefusedError                    a Docker command failed: a port taken, an image not to be had
    ├── NotReadyError (TimeoutError)              a server or a service was not ready in time
    ├── BadConfigError (ValueError)               nats-server does not understand a configuration
    ├── BadTokenError (ValueError)                a signed token is none, or was changed
    ├── StoreError (OSError)                      a directory for stores or results cannot be used
    ├── BadLayoutError (ValueError)               regions and leaf nodes cannot be as asked for
    ├── UnknownServerError (LookupError)          no server of the mesh has that name
    ├── UnknownLinkError (LookupError)            no link of the mesh joins the two
    ├── UnknownServiceError (LookupError)         no service or replica has that name
    ├── MeshClosedError (RuntimeError)            the mesh was closed before
    ├── NoMeshError (RuntimeError)                a service needs a mesh and none is open
    ├── UnsupportedByBackendError (NotImplementedError)        the backend lacks the power that was asked for
    ├── ServiceCellError (ValueError)             a %%service cell cannot be run as it stands
    ├── ServiceCrashedError (ChildProcessError)   a service crashed before it was ready
    ├── OrderFormatError (ValueError)             a row or a message is not an order
    ├── WrongTotalsError (ValueError)             orders were lost, doubled or changed
    ├── StoreFormatError (ValueError)             a file of a store is not as nats-server writes it
    ├── InvariantBrokenError (AssertionError)     a chaos run lost, doubled or reversed an order
    ├── NoPowerCutError (PermissionError)         this machine does not let us take away a server's disk
    ├── PublishRefusedError (RuntimeError)        the server refused a message; it is not stored
    ├── UnknownOutcomeError (TimeoutError)        a message may or may not be stored
    ├── PoisonMessageError (ValueError)           a message can never be handled
    ├── CircuitOpenError (ConnectionError)        a service failed too often and is left alone for a while
    ├── GroupMismatchError (ValueError)           a partitioned group is there with other settings
    ├── MemberNameTakenError (RuntimeError)       a member of that name is in the group
    ├── BatchEndedError (ConnectionError)         a batch ended early; a beginning of it is stored
    └── UnknownExerciseError (LookupError)        no exercise has that number
"""

from collections.abc import Mapping


class MeshLabError(Exception):
    """Root of every error that this package raises."""


class NoServerBinaryError(MeshLabError, FileNotFoundError):
    """No nats-server that is new enough was found; the message lists every place that was tried."""


class NoEngineError(MeshLabError, ConnectionError):
    """No Docker engine answers, or Compose 2 is missing; the message says which, and what to do."""


class SettingsError(MeshLabError, ValueError):
    """The folder ``docker/`` or its ``.env`` is not as the containers need it."""


class NoNatsCliError(MeshLabError, FileNotFoundError):
    """The ``nats`` command-line tool was asked for and is not installed."""


class BadConfigError(MeshLabError, ValueError):
    """nats-server does not understand a configuration; the message says what it said."""


class BadTokenError(MeshLabError, ValueError):
    """A signed token is none, or was changed after it was signed."""


class ProcessEndedError(MeshLabError, ChildProcessError):
    """A child process ended while it was needed, or failed: a service, a load generator, a tool.

    Attributes:
        name: What ended, for example ``"worker-2"``.
        exit_code: Its exit code, negative for the signal that killed it; ``None`` where it is not known.
        log: The end of what it printed.
    """

    def __init__(self, message: str, *, name: str = "", exit_code: int | None = None, log: str = "") -> None:
        super().__init__(message)
        self.name, self.exit_code, self.log = name, exit_code, log


class ServerExitedError(ProcessEndedError):
    """A server is not running, or ended by itself; the message carries its last log lines."""


class EngineRefusedError(ProcessEndedError):
    """The Docker engine could not do what was asked: a port is taken, or an image cannot be had."""


class NotReadyError(MeshLabError, TimeoutError):
    """A server or a service was not ready before the deadline.

    Attributes:
        waited_s: Seconds that were waited, where that is known.
        missing: What was seen instead, where servers were asked.
    """

    def __init__(self, message: str, *, waited_s: float | None = None, missing: str = "") -> None:
        super().__init__(message)
        self.waited_s, self.missing = waited_s, missing


class StoreError(MeshLabError, OSError):
    """A directory cannot be made or written: for the servers' stores, or for this machine's results."""


class BadLayoutError(MeshLabError, ValueError):
    """Servers, regions and leaf nodes cannot be as asked for: too few, an even number, or a name that is not legal."""


class UnknownServerError(MeshLabError, LookupError):
    """No server of the mesh, and where one may be named no region, has that name."""


class UnknownLinkError(MeshLabError, LookupError):
    """No link of the mesh joins the two."""


class UnknownServiceError(MeshLabError, LookupError):
    """No service, or no replica of it, has that name."""


class MeshClosedError(MeshLabError, RuntimeError):
    """The mesh was closed before."""


class NoMeshError(MeshLabError, RuntimeError):
    """A service was asked for while no mesh is open."""


class UnsupportedByBackendError(MeshLabError, NotImplementedError):
    """The backend lacks the power that was asked for, such as stopping an external server."""


class ServiceCellError(MeshLabError, ValueError):
    """A ``%%service`` cell cannot be run as it stands."""


class ServiceCrashedError(MeshLabError, ChildProcessError):
    """A service crashed before it was ready; the message carries its traceback."""


class OrderFormatError(MeshLabError, ValueError):
    """A row or a message is not an order; the message says which one and why."""


class WrongTotalsError(MeshLabError, ValueError):
    """Orders were lost, doubled or changed; the message shows the difference.

    Attributes:
        differences: What was seen less what was expected, by the name of the count or sum; without what is right.
    """

    def __init__(self, message: str, *, differences: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.differences = dict(differences or {})


class StoreFormatError(MeshLabError, ValueError):
    """A file of a server's store is not as nats-server writes it; the message says where."""


class InvariantBrokenError(MeshLabError, AssertionError):
    """A chaos run lost, doubled or reversed an order.

    Attributes:
        broken: The ids of the orders, by how the promise was broken: ``lost``, ``doubled``, ``reversed`` and so on.
    """

    def __init__(self, message: str, *, broken: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(message)
        self.broken = broken


class NoPowerCutError(MeshLabError, PermissionError):
    """This machine does not let us take away a server's disk; the message says what is missing."""


class PublishRefusedError(MeshLabError, RuntimeError):
    """The server refused a message: it is not stored, and sending it again would be refused again.

    Attributes:
        code: As in HTTP, 400 for the caller's mistake; 0 where the server was not asked, as for a message too large.
        err_code: Number in nats-server's own list, for example 10071 for a wrong last sequence; or 0.
    """

    def __init__(self, message: str, *, code: int = 0, err_code: int = 0) -> None:
        super().__init__(message)
        self.code, self.err_code = code, err_code


class UnknownOutcomeError(MeshLabError, TimeoutError):
    """No reply came within the retry budget: the message may or may not be stored.

    Attributes:
        waited_s: Seconds without a reply; 0.0 where a reply came that says nothing about it.
    """

    def __init__(self, message: str, *, waited_s: float = 0.0) -> None:
        super().__init__(message)
        self.waited_s = waited_s


class PoisonMessageError(MeshLabError, ValueError):
    """A message can never be handled, however often it is tried; raised by handlers."""


class CircuitOpenError(MeshLabError, ConnectionError):
    """A service failed too often and is left alone for a while.

    Attributes:
        retry_after: Seconds until it is worth trying again.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GroupMismatchError(MeshLabError, ValueError):
    """A partitioned group, or its stream, has other settings than this member expects."""


class MemberNameTakenError(MeshLabError, RuntimeError):
    """Another process is in the group under this member's name."""


class BatchEndedError(MeshLabError, ConnectionError):
    """The server ended a batch before its end: a beginning of it is stored, the rest is not acknowledged.

    Attributes:
        stored: Messages of the batch that are stored.
        sent: Messages that were sent.
    """

    def __init__(self, message: str, *, stored: int, sent: int) -> None:
        super().__init__(message)
        self.stored, self.sent = stored, sent


class UnknownExerciseError(MeshLabError, LookupError):
    """No exercise has that number."""
