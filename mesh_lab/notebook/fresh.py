"""Streams and consumers made anew: a cell that is run again deletes what it left the time before."""

from contextlib import suppress
from typing import Any

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.errors import NotFoundError

from mesh_lab.patterns import retry, wait_routable

API_TIMEOUT_S = 5.0


async def stream(client: Client, name: str, subjects: list[str], **settings: Any) -> None:
    """Make a stream, in place of one that has its name, and return when this client's server routes to it.

    Args:
        client: A connected nats-py client.
        name: The stream's name; what a stream of that name holds is lost.
        subjects: What it takes.
        **settings: As ``add_stream`` takes them.

    Raises:
        TimeoutError: No reply came in time.
        nats.js.errors.APIError: The servers refused it.
    """
    js = client.jetstream(timeout=API_TIMEOUT_S)
    with suppress(NotFoundError):
        await retry(lambda: js.delete_stream(name))
    await retry(lambda: js.add_stream(name=name, subjects=subjects, **settings))
    await wait_routable(client, name)


async def consumer(client: Client, stream: str, name: str, **settings: Any) -> JetStreamContext.PullSubscription:
    """Make a durable pull consumer, in place of one that has its name, and return what to fetch from.

    Args:
        client: A connected nats-py client.
        stream: Name of a stream that exists.
        name: The consumer's name; what a consumer of that name had to deliver again is forgotten.
        **settings: As ``add_consumer`` takes them.

    Raises:
        TimeoutError: No reply came in time.
        nats.js.errors.APIError: The servers refused it, or there is no such stream.
    """
    js = client.jetstream(timeout=API_TIMEOUT_S)
    with suppress(NotFoundError):
        await retry(lambda: js.delete_consumer(stream, name))
    await retry(lambda: js.add_consumer(stream, durable_name=name, **settings))
    await wait_routable(client, stream, name)
    return await js.pull_subscribe_bind(name, stream=stream)
