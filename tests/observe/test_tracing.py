"""An order's way through publisher, worker and read model, as a collector is told of it by OTLP."""

import asyncio
import contextlib
import json
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nats.errors
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mesh_lab.errors import ProcessEndedError
from mesh_lab.orders.dataset import read_orders
from mesh_lab.orders.read_model import ask_read_model
from mesh_lab.orders.tracing import OrderTracer
from mesh_lab.patterns.wait import eventually
from mesh_lab.processes import CONNECT_VARIABLE, ChildProcess
from mesh_lab.servers.mesh import Mesh
from mesh_lab.servers.start import start_mesh
from mesh_lab.tls import pack

COUNT = 100
Spans = list[tuple[str, Any]]
"""Of each span, the service's name, and the span as it came."""


class Collector:
    """Takes what services send by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: Spans = []
        spans = self.spans

        class Take(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                sent = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in sent.resource_spans:
                    about = {one.key: one.value.string_value for one in resource.resource.attributes}
                    spans.extend((about["service.name"], s) for scope in resource.scope_spans for s in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing on the terminal."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Take)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    thread = threading.Thread(target=found.server.serve_forever)
    thread.start()
    yield found
    found.server.shutdown()
    thread.join()
    found.server.server_close()


def service(mesh: Mesh, *arguments: str, **variables: str) -> ChildProcess:
    """Return a service that is not started yet, without compression and with little delay for what it sends."""
    environment = {CONNECT_VARIABLE: json.dumps(pack(mesh.connect_options())), "OTEL_BSP_SCHEDULE_DELAY": "100"}
    command = [sys.executable, "-m", "mesh_lab.orders", *arguments]
    return ChildProcess(command, name=arguments[0], environment=environment | variables, stdout=True)


async def run_all(**variables: str) -> None:
    """Send the first orders through all services, wait until they are counted, and end the services."""
    async with await start_mesh(servers=1) as mesh, await mesh.connect() as client:

        async def counted() -> bool:
            try:
                events = (await ask_read_model(client)).events
            except nats.errors.NoRespondersError:  # it has not begun
                return False
            return events.get("shipped", 0) + events.get("declined", 0) == COUNT

        with contextlib.ExitStack() as stack:
            lines = (["worker"], ["read-model"], ["publisher", f"--first={COUNT}"])
            worker, reader, publisher = (service(mesh, *line, **variables) for line in lines)
            for each in (worker, reader, publisher):
                stack.enter_context(contextlib.closing(each)).start()
            assert json.loads(await asyncio.to_thread(publisher.receive))["acknowledged"] == COUNT
            await eventually(counted, within=20)
            for each in (worker, reader):
                each.request_stop()
                assert await asyncio.to_thread(each.wait, within=10), each.log(last=5)


async def test_one_trace_holds_the_whole_way_of_an_order(collector: Collector) -> None:
    await run_all(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_TRACES_SAMPLER="parentbased_always_on")
    traces: dict[bytes, Spans] = defaultdict(list)
    for name, span in collector.spans:
        traces[span.trace_id].append((name, span))
    assert len(traces) == COUNT
    subjects = set()
    for spans in traces.values():
        by_id = {span.span_id: span for _, span in spans}
        [(root_service, root)] = [(name, span) for name, span in spans if not span.parent_span_id]
        assert (root_service, root.name) == ("publisher", "publish placed")
        subjects.add(next(a.value.string_value for a in root.attributes if a.key == "messaging.destination.name"))
        steps = {(name, span.name): by_id[span.parent_span_id].name for name, span in spans if span is not root}
        assert steps.pop(("worker", "process placed")) == steps.pop(("read-model", "count placed")) == "publish placed"
        assert set(steps.values()) == {"process placed"}
        assert {step for _, step in steps} in ({"count paid", "count shipped"}, {"count declined"})
    assert subjects == {order.subject("placed") for order in read_orders(first=COUNT)}


async def test_a_share_of_the_orders_is_followed_where_that_is_asked_for(collector: Collector) -> None:
    sampler = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.3"}
    await run_all(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, **sampler)
    roots = {span.trace_id for _, span in collector.spans if not span.parent_span_id}
    assert 0 < len(roots) < COUNT
    assert {span.trace_id for _, span in collector.spans} == roots


def test_where_no_sampler_is_chosen_one_order_in_a_hundred_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
    tracer = OrderTracer("publisher")
    followed = sum(tracer.place("orders.eu.1.placed") is not None for _ in range(10_000))
    tracer.close()
    assert 50 < followed < 150  # 100, but for chance


async def test_orders_pass_also_where_no_collector_listens(unused_tcp_port: int) -> None:
    nobody = f"http://127.0.0.1:{unused_tcp_port}"
    all_of_them = {"OTEL_TRACES_SAMPLER": "parentbased_always_on", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    await run_all(OTEL_EXPORTER_OTLP_ENDPOINT=nobody, **all_of_them)


def test_without_the_library_the_setting_is_refused_with_what_to_install() -> None:
    program = (
        "import sys; sys.modules['opentelemetry'] = None; from mesh_lab.orders.__main__ import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "worker"]
    setting = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    with contextlib.closing(ChildProcess(command, name="worker", environment=setting, stdout=True)) as worker:
        worker.start()
        with pytest.raises(ProcessEndedError, match="OTEL_EXPORTER_OTLP_ENDPOINT is set, and opentelemetry"):
            worker.receive()
