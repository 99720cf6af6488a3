"""Every error that the package raises, in one tree under :class:`MeshLabError`.

Each is also the nearest built-in kind, so that ``except TimeoutError`` or ``except ValueError`` does what a
reader expects. A message says what happened with its numbers, what was expected, and what to do.
"""

from collections.abc import Mapping


class MeshLabError(Exception):
    """Root of every error that this package raises."""


class NoServerBinaryError(MeshLabError, FileNotFoundError):
    """No nats-server that is new enough was found; the message lists every place that was tried."""


class NoEngineError(MeshLabError, ConnectionError):
    """No Docker engine answers, or Compose 2 is missing."""


class NoGoError(MeshLabError, FileNotFoundError):
    """The Go twin was asked for, and there is no Go here, or none that can build it."""


class NoPowerCutError(MeshLabError, PermissionError):
    """This machine cannot simulate a power cut: that needs Linux and the right to mount."""


class SettingsError(MeshLabError, ValueError):
    """A setting cannot be used, which the message names: an address, a variable, the folder ``docker/``."""


class CredentialsError(MeshLabError, OSError):
    """A credentials file is missing, cannot be read or holds no credentials; the message names it."""


class LoginRefusedError(MeshLabError, PermissionError):
    """The servers are there and let nobody in with this user, password, token, certificate or credentials file."""


class BadConfigError(MeshLabError, ValueError):
    """nats-server does not understand a configuration; the message has its own words."""


class BadLayoutError(MeshLabError, ValueError):
    """Servers, regions and leaf nodes cannot be as asked for: too few, an even number, or an illegal name."""


class BadTokenError(MeshLabError, ValueError):
    """A text is not a signed token, or the token was changed after it was signed."""


class StoreError(MeshLabError, OSError):
    """A directory for stores or results cannot be written, or a store's file is not as nats-server writes it."""


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
    """A Docker command failed: a port is taken, or an image cannot be had."""


class NotReadyError(MeshLabError, TimeoutError):
    """Servers or a service were not ready within ``waited_s`` seconds; ``missing`` is what still was missing."""

    def __init__(self, message: str, *, waited_s: float | None = None, missing: str = "") -> None:
        super().__init__(message)
        self.waited_s, self.missing = waited_s, missing


class UnknownNameError(MeshLabError, LookupError):
    """Nothing has that name: no server, region, link, service, replica or exercise; the message lists what there is."""


class MeshClosedError(MeshLabError, RuntimeError):
    """The mesh was closed before, or none is open and one is needed."""


class UnsupportedByBackendError(MeshLabError, NotImplementedError):
    """The backend cannot do what was asked for, such as stop an external server."""


class ServiceCellError(MeshLabError, ValueError):
    """A ``%%service`` cell cannot be run as it stands."""


class OrderFormatError(MeshLabError, ValueError):
    """A row or a message is not an order; the message says which one and why."""


class WrongTotalsError(MeshLabError, ValueError):
    """Orders were lost, doubled or changed; ``differences`` holds the number seen minus that expected, by name."""

    def __init__(self, message: str, *, differences: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.differences = dict(differences or {})


class InvariantBrokenError(MeshLabError, AssertionError):
    """A chaos run broke the promise; ``broken`` holds the orders' ids by how: ``lost``, ``doubled``, ``reversed``."""

    def __init__(self, message: str, *, broken: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__(message)
        self.broken = broken


class PublishRefusedError(MeshLabError, RuntimeError):
    """A message was refused, or nobody took it for long: it is not stored, and would be refused again.

    Attributes:
        code: As in HTTP, 400 for the caller's mistake; 0 where the server was not asked, as for a message too large.
        err_code: Number in nats-server's own list, for example 10071 for a wrong last sequence; or 0.
    """

    def __init__(self, message: str, *, code: int = 0, err_code: int = 0) -> None:
        super().__init__(message)
        self.code, self.err_code = code, err_code


class UnknownOutcomeError(MeshLabError, TimeoutError):
    """No reply came for ``waited_s`` seconds, or (0.0) one that says nothing: a message may or may not be stored.

    Where a later copy of the message was refused, ``err_code`` is the number of that refusal.
    """

    def __init__(self, message: str, *, waited_s: float = 0.0, err_code: int = 0) -> None:
        super().__init__(message)
        self.waited_s, self.err_code = waited_s, err_code


class BatchForgottenError(UnknownOutcomeError):
    """A server has forgotten a batch, as after its restart; beyond what was acknowledged, any of it may be stored."""


class AlreadyStoredError(MeshLabError, ValueError):
    """The stream has a message under the same ``Nats-Msg-Id``: sent again, it is stored no second time."""


class BatchEndedError(MeshLabError, ConnectionError):
    """The server ended a batch early: of ``sent`` messages the first ``stored`` are stored."""

    def __init__(self, message: str, *, stored: int, sent: int) -> None:
        super().__init__(message)
        self.stored, self.sent = stored, sent


class AlreadyThereError(MeshLabError, FileExistsError):
    """What would be made is there already, a stream or the folder of a backup; it was left as it is."""


class TornBackupError(MeshLabError, ValueError):
    """A file of a backup is missing, torn or changed."""


class TransferEndedError(MeshLabError, ConnectionError):
    """A backup or a restore ended early; the message says why, and what of it was left."""


class UnsuitableConsumerError(MeshLabError, ValueError):
    """A consumer, or the subject for its dead letters, has settings that lose messages or never bring any."""


class StreamReplacedError(MeshLabError, RuntimeError):
    """A stream that was read up to some place is another one now, or ends before that place."""


class PoisonMessageError(MeshLabError, ValueError):
    """A message can never be handled, however often it is tried; raised by handlers."""


class CircuitOpenError(MeshLabError, ConnectionError):
    """A service failed too often and is not called for ``retry_after`` more seconds."""

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GroupMismatchError(MeshLabError, ValueError):
    """A partitioned group, or its stream, has other settings than this member expects."""
