"""Reusable client patterns over a plain nats-py client."""

from mesh_lab.patterns.atomic_batch import BatchMessage, publish_together
from mesh_lab.patterns.backup import backup_stream, restore_stream
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
