"""Traces: the caller's goes on through us to the server, and a collector hears of each step."""

from __future__ import annotations

import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from support import Fickle, running_gateway, wait_for

pytestmark = pytest.mark.long

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "vendor=1"}
spans: queue.Queue[Any] = queue.Queue()


class Collector(BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    def do_POST(self) -> None:
        request = ExportTraceServiceRequest()
        request.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    spans.put(span)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def attributes(span: Any) -> dict[str, Any]:
    return {pair.key: pair.value.string_value or pair.value.bool_value for pair in span.attributes}


def test_spans_reach_the_collector_within_the_callers_trace(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    fickle = Fickle(tmp_path / "fickle")
    settings = f"tracing: {{endpoint: 'http://127.0.0.1:{server.server_port}/v1/traces'}}\ncache: {{enabled: false}}\n"
    with running_gateway({"city": fickle.entry}, settings=settings) as process:
        process.wait_for_state("city", "up")
        body = {"tool_id": "city__look", "parameters": {"city": "Rome"}}
        assert process.http.post("/execute_tool", json=body, headers=PARENT).json()["success"]
        fickle.order(die=True)
        lost = process.http.post("/execute_tool", json={**body, "tool_id": "city__write"}, headers=PARENT).json()
        assert lost["error"]["code"] == "outcome_unknown"
        found: list[Any] = []

        def both() -> bool:
            while not spans.empty():
                found.append(spans.get())
            return len([span for span in found if span.trace_id.hex() == TRACE]) >= 4

        wait_for(both, 60, "for the spans")
    server.shutdown()
    by_id = {span.span_id.hex(): span for span in found}
    received = [span for span in found if span.parent_span_id.hex() == SPAN]
    assert sorted(attributes(span)["gen_ai.tool.name"] for span in received) == ["city__look", "city__write"]
    requests = [span for span in found if attributes(span).get("rpc.method") == "tools/call"]
    assert {span.parent_span_id.hex() for span in requests} == {span.span_id.hex() for span in received}
    failed = next(span for span in received if attributes(span)["gen_ai.tool.name"] == "city__write")
    assert attributes(failed)["error.type"] == "outcome_unknown"
    told = fickle.calls()[0]["meta"]
    version, trace, parent, _ = told["traceparent"].split("-")
    assert (version, trace) == ("00", TRACE)
    assert by_id[parent] in requests
    assert told["tracestate"] == "vendor=1"


def test_without_a_collector_the_callers_trace_goes_through_as_it_is(tmp_path: Path) -> None:
    fickle = Fickle(tmp_path / "fickle")
    with running_gateway({"city": fickle.entry}) as process:
        process.wait_for_state("city", "up")
        body = {"tool_id": "city__write", "parameters": {"city": "Rome"}}
        process.http.post("/execute_tool", json=body, headers=PARENT)
        process.http.post("/execute_tool", json=body)
        process.http.post(
            "/mcp",
            json={"jsonrpc": "2.0", "id": 1, "method": "tools/call",
                  "params": {"name": "city__write", "arguments": {}, "_meta": {
                      **PARENT, "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                      "io.modelcontextprotocol/clientCapabilities": {}}}},
            headers={"mcp-protocol-version": "2026-07-28", "mcp-method": "tools/call", "mcp-name": "city__write",
                     "accept": "application/json, text/event-stream"},
        )  # fmt: skip
        told = [call["meta"] or {} for call in fickle.calls()]
    assert {name: told[0].get(name) for name in PARENT} == PARENT
    assert "traceparent" not in told[1]
    assert {name: told[2].get(name) for name in PARENT} == PARENT
