"""A server's state, as its HTTP monitoring port reports it.

Endpoints and fields: https://docs.nats.io/running-a-nats-service/nats_admin/monitoring
"""

import http.client
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Health:
    """One reply of ``/healthz``."""

    ok: bool
    seen: str
    """The reply, for messages: ``"200 ok"``, ``"503 JetStream has not established contact…"``, ``"no answer: …"``."""


@dataclass(frozen=True, slots=True)
class Monitor:
    """Reads the monitoring endpoints of one server; a call blocks, for up to ``timeout_s``."""

    host: str
    port: int
    timeout_s: float = 3.0

    def read(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return the status and the decoded JSON body of one endpoint, such as ``"/connz?subs=1"``.

        Raises:
            OSError: No reply came within ``timeout_s``.
            ValueError: The reply is not JSON.
        """
        connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = json.loads(response.read())
        except http.client.HTTPException as err:
            raise OSError(f"{self.host}:{self.port}{path} broke off its answer: {err!r}") from err
        finally:
            connection.close()
        return response.status, body

    def health(self) -> Health:
        """Return whether the server reports itself healthy, JetStream included; never raises."""
        try:
            status, body = self.read("/healthz")
        except (OSError, ValueError) as err:
            return Health(ok=False, seen=f"no answer: {err}")
        return Health(ok=status == 200, seen=f"{status} {body.get('error') or body.get('status', '')}".strip())

    def varz(self) -> dict[str, Any]:
        """Return general facts: version, connections, messages in and out, slow consumers.

        Raises:
            OSError: No reply came; so in all that follow.
        """
        return self.read("/varz")[1]

    def jsz(self, query: str = "") -> dict[str, Any]:
        """Return JetStream's state; ``query`` such as ``"streams=1&accounts=1"`` adds detail."""
        return self.read("/jsz" + (f"?{query}" if query else ""))[1]

    def connz(self, query: str = "") -> dict[str, Any]:
        """Return the client connections; ``query`` such as ``"subs=1"`` adds detail."""
        return self.read("/connz" + (f"?{query}" if query else ""))[1]

    def routez(self, query: str = "") -> dict[str, Any]:
        """Return the routes to the other servers of the cluster; ``query`` such as ``"subs=1"`` adds detail."""
        return self.read("/routez" + (f"?{query}" if query else ""))[1]

    def gatewayz(self) -> dict[str, Any]:
        """Return the gateways to other regions: for each, one connection out, and those that came in."""
        return self.read("/gatewayz")[1]

    def leafz(self) -> dict[str, Any]:
        """Return the leaf node connections, on either side of them."""
        return self.read("/leafz")[1]
