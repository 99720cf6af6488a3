"""Whether a cluster's meta leader would place a stream on each of its servers."""

import json

import nats.errors
from nats.aio.client import Client

from mesh_lab.errors import NotReadyError
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.polling import cluster_members, until

NOWHERE = "mesh-lab-readiness"
NO_PLACE = ("peer offline", "miscellaneous issue")  # it has not heard enough of a server, or nothing


async def wait_until_placeable(mesh: Mesh, *, within: float) -> None:
    """Return when a stream may be placed on every server of a cluster; at once, where there is none.

    Args:
        mesh: Mesh whose servers were started.
        within: Seconds until it is too late.

    Raises:
        NotReadyError: It may not; the message says why.
    """
    seen = ""

    async def placeable() -> bool:
        nonlocal seen
        try:
            async with await mesh.connect(name="readiness") as client:
                seen = await no_place_for_streams(client)
        except (TimeoutError, nats.errors.Error, NotReadyError) as err:
            seen = f"JetStream's API: {err!r}"
        return not seen

    if len(cluster_members(mesh)) > 1:  # a server without peers would make the stream that is asked for
        await until(placeable, within=within, problem=lambda: f"no place for streams after {within:.1f} s: {seen}")


async def no_place_for_streams(client: Client) -> str:
    """Return why some server could not hold a stream now, in the meta leader's words; nothing, if all could.

    A peer of which the leader knows the name, and not yet what it holds, is current in ``/jsz``, and no place for a
    stream, for up to a quarter of a second: "peer offline". Only who places a stream is told. This asks for a place
    that no server has, so that nothing is made, and the refusal gives all reasons.
    (nats-server 2.15.1, processNewServer in server/events.go, selectPeerGroup in server/jetstream_cluster.go)

    Args:
        client: A client of a cluster of two servers or more; a single one would make the stream.

    Raises:
        TimeoutError: Nobody answered within half a second.
        nats.errors.NoRespondersError: Nobody is there to answer.
    """
    wish = {"name": NOWHERE, "subjects": [NOWHERE], "placement": {"tags": [NOWHERE]}}
    answer = await client.request(f"$JS.API.STREAM.CREATE.{NOWHERE}", json.dumps(wish).encode(), timeout=0.5)
    said = str(json.loads(answer.data).get("error", {}).get("description", ""))
    return said if any(reason in said for reason in NO_PLACE) else ""
