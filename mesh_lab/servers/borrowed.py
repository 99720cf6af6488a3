"""An account that outlives a lesson: it holds no streams when the lesson begins, and none of the lesson's when it ends.

The server's own audit says which client made a stream. One that anybody else made meanwhile stays, and so does one
that was made anew under the same name.
"""

import json
import secrets
from collections.abc import Collection
from contextlib import suppress
from functools import partial

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from mesh_lab.errors import NotReadyError, UnsupportedByBackendError
from mesh_lab.patterns.connection import server_name
from mesh_lab.patterns.jetstream_api import api_request, stream_names
from mesh_lab.patterns.wait import eventually

IN_USE = "mesh-lab.in-use"
"""Subject on which whoever uses an account for a while replies."""
HEARD_WITHIN_S, SHOWN = 2.0, 5


class BorrowedAccount:
    """The account in which a lesson works, on servers that go on without it.

    Attributes:
        members: Subject on which a process that works for the lesson says who its client is, as :func:`who`.
    """

    def __init__(self, client: Client, clients: Collection[Client]) -> None:
        self._client, self._clients, self._heard = client, clients, set[str]()
        self.members = f"_LAB.member.{secrets.token_hex(8)}"
        self._ours, self._created = set[str](), list[tuple[str, str, str]]()

    @property
    def made(self) -> dict[str, str]:
        """The streams that the lesson and its services made, each with the time at which the server says it did."""
        return {name: created for maker, name, created in self._created if maker in self._ours}

    async def begin(self) -> None:
        """Take the account for the lesson.

        Raises:
            UnsupportedByBackendError: It holds streams, another lesson works in it, or JetStream does not serve it.
        """
        if await in_use(self._client):
            raise UnsupportedByBackendError("another lesson, or a run of the main job, works in the account there now")
        try:
            names = await stream_names(self._client)
        except nats.errors.Error as err:
            why = getattr(err, "description", None) or err
            raise UnsupportedByBackendError(f"JetStream does not serve the account there: {why}") from err
        if names:
            shown = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
            raise UnsupportedByBackendError(
                f"the account there holds streams that this lesson did not make ({shown}); give it an account without "
                "streams, or look at them with `mesh-lab clear`, remove them, and restart the kernel"
            )
        await use(self._client)
        await self._client.subscribe(self.members, cb=self._note_member)
        await self._client.subscribe("$JS.EVENT.ADVISORY.API", cb=self._note)
        with suppress(NotReadyError):  # an account that must not hear it: then nothing is known to be the lesson's
            await eventually(self._is_heard, within=HEARD_WITHIN_S, every=0.1)

    async def end(self) -> None:
        """Remove what the lesson made; NotReadyError if the servers do not reply."""
        try:
            for name in await stream_names(self._client) if self._heard else ():
                with suppress(NotFoundError):
                    info = await api_request(self._client, call := f"STREAM.INFO.{name}")
                    # A stream's leader replies to both, and audits both: when this audit is here, so is that of its
                    # making.
                    await eventually(partial(self._heard.__contains__, f"$JS.API.{call}"), within=HEARD_WITHIN_S)
                    if self.made.get(name) == info["created"]:
                        await api_request(self._client, f"STREAM.DELETE.{name}")
        except (TimeoutError, nats.errors.Error) as err:
            if left := ", ".join(self.made):
                raise NotReadyError(f"of {left}, some are left in the account: {err!r}; try `mesh-lab clear`") from err

    async def _is_heard(self) -> bool:
        await api_request(self._client, "INFO")  # is audited too
        return bool(self._heard)

    async def _note(self, msg: Msg) -> None:
        audit = json.loads(msg.data)
        client = audit.get("client") or {}
        maker = f"{client.get('server')} {client.get('id')} {client.get('name')}"
        if maker == who(self._client):
            self._heard.add(audit["subject"])
        if ".API.STREAM.CREATE." in audit["subject"]:
            self._ours |= {maker} & {who(client) for client in self._clients}
            reply = json.loads(audit["response"])
            if reply.get("did_create"):
                self._created.append((maker, reply["config"]["name"], reply["created"]))

    async def _note_member(self, msg: Msg) -> None:
        self._ours.add(msg.data.decode())


def who(client: Client) -> str:
    """Return what tells a client from others, as the servers' audit names it; its name, since numbers come again."""
    return f"{server_name(client)} {client.client_id} {client.options['name']}"


async def in_use(client: Client) -> bool:
    """Return whether a lesson or a run of the main job works in a client's account."""
    with suppress(TimeoutError, nats.errors.NoRespondersError):  # no time either where it must not be asked
        await client.request(IN_USE, timeout=1.0)
        return True
    return False


async def use(client: Client) -> None:
    """Let others see, for as long as a client is connected, that its account is in use."""

    async def reply(msg: Msg) -> None:
        await msg.respond(b"")

    await client.subscribe(IN_USE, cb=reply)
