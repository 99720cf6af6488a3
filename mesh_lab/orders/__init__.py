"""The order-processing mesh: what the notebooks build, finished.

It needs nats-py, msgspec, zstd and the standard library, and runs in a notebook as in a container.
"""

from mesh_lab.orders.bulk import OrderBatch, decode_batch, encode_batch, headers_of
from mesh_lab.orders.bulk_lane import batched
from mesh_lab.orders.dataset import EVERYTHING, read_orders
from mesh_lab.orders.event_store import WORKERS, create_event_store, create_worker_group, open_event_store, read_order
from mesh_lab.orders.health import probe
from mesh_lab.orders.order import STREAM, Event, Order, check_totals, decode, encode, totals_of
from mesh_lab.orders.publisher import place_orders
from mesh_lab.orders.read_model import ReadModel, Summary, ask_read_model, serve_read_model
from mesh_lab.orders.replay import dead_letters, replay_letters
from mesh_lab.orders.saga import DUTIES, LIVES, SAGA, fate
from mesh_lab.orders.saga_audit import audit_saga, expected_ends
from mesh_lab.orders.worker import WORKER, Worker
