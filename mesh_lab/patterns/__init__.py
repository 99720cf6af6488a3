"""Reusable client patterns over a plain nats-py client."""

from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.circuit_breaker import CircuitBreaker
from mesh_lab.patterns.consuming import read_in_order
from mesh_lab.patterns.fast_ingest import ingest
from mesh_lab.patterns.jetstream_wait import flush_through, retry, wait_routable, wait_stream
from mesh_lab.patterns.limiting import TokenBucket
from mesh_lab.patterns.load_shedding import ERROR, ERROR_CODE, RETRY_AFTER, AdmissionController
from mesh_lab.patterns.partitioning import GroupMember
from mesh_lab.patterns.publishing import WindowedPublisher
from mesh_lab.patterns.retrying import Backoff, consume_with_retries
from mesh_lab.patterns.waiting import cancel_and_join, eventually

__all__ = [
    "ERROR",
    "ERROR_CODE",
    "RETRY_AFTER",
    "AdmissionController",
    "Backoff",
    "BatchMessage",
    "CircuitBreaker",
    "GroupMember",
    "TokenBucket",
    "WindowedPublisher",
    "cancel_and_join",
    "consume_with_retries",
    "eventually",
    "flush_through",
    "ingest",
    "publish_together",
    "read_in_order",
    "retry",
    "wait_routable",
    "wait_stream",
]
