"""Reusable client patterns over a plain nats-py client; a module is loaded when a name of it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
    from mesh_lab.patterns.circuit_breaker import CircuitBreaker
    from mesh_lab.patterns.fast_ingest import ingest
    from mesh_lab.patterns.jetstream_wait import flush_through, wait_routable, wait_stream
    from mesh_lab.patterns.load_shedding import ERROR, ERROR_CODE, RETRY_AFTER, AdmissionController
    from mesh_lab.patterns.partition_group import GroupMember
    from mesh_lab.patterns.pull_consumer import read_in_order
    from mesh_lab.patterns.redelivery import Backoff, consume_with_retries
    from mesh_lab.patterns.token_bucket import TokenBucket
    from mesh_lab.patterns.wait import cancel_and_join, eventually, retry
    from mesh_lab.patterns.windowed_publisher import WindowedPublisher

_MODULES = {
    "atomic_batch": ["BatchMessage", "publish_together"],
    "circuit_breaker": ["CircuitBreaker"],
    "fast_ingest": ["ingest"],
    "jetstream_wait": ["flush_through", "wait_routable", "wait_stream"],
    "load_shedding": ["ERROR", "ERROR_CODE", "RETRY_AFTER", "AdmissionController"],
    "partition_group": ["GroupMember"],
    "pull_consumer": ["read_in_order"],
    "redelivery": ["Backoff", "consume_with_retries"],
    "token_bucket": ["TokenBucket"],
    "wait": ["cancel_and_join", "eventually", "retry"],
    "windowed_publisher": ["WindowedPublisher"],
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"mesh_lab.patterns.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mesh_lab.patterns' has no attribute {name!r}; there are {', '.join(__all__)}")
