"""One trace through real processes: request, queue, batch and stages, as a receiver gets them."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fleet import running_fleet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from engines.spec import ModelSpec

PROMPT = "xq7canary"
TRACE = "0af7651916cd43dd8448eb211c80319c"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
WANTED = {"http POST", "queue", "batch", "text", "denoise", "decode", "encode"}


class _Receiver(http.server.BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def _receiving() -> Iterator[tuple[str, list[bytes]]]:
    bodies: list[bytes] = []
    handler = type("Receiver", (_Receiver,), {"bodies": bodies})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", bodies
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _spans(bodies: list[bytes]) -> list[tuple[str, Any]]:
    """(the process's name, span) of everything received."""
    found = []
    for body in bodies:
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            (name,) = [
                attribute.value.string_value
                for attribute in told.resource.attributes
                if attribute.key == "service.name"
            ]
            found += [(name, span) for scope in told.scope_spans for span in scope.spans]
    return found


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _ask(port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/generate",
        json.dumps({"prompt": PROMPT}).encode(),
        {"content-type": "application/json", "traceparent": f"00-{TRACE}-b7ad6b7169203331-01"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def test_a_picture_is_one_trace_through_api_and_worker(bundle: Path, tmp_path: Path) -> None:
    admin = _free_port()
    with (
        _receiving() as (endpoint, bodies),
        running_fleet(bundle, tmp_path, num_apis=0, num_workers=1, otel_endpoint=endpoint) as fleet,
    ):
        fleet.start_api(admin_port=admin)
        fleet.wait_for_workers(ModelSpec.load(bundle).name, 1)
        _ask(fleet.ports[0])
        scrape = urllib.request.Request(
            f"http://127.0.0.1:{admin}/metrics", headers={"accept": OPEN_METRICS}
        )
        with urllib.request.urlopen(scrape, timeout=10) as answer:
            metrics = answer.read().decode()
        # What has not been sent yet goes out with the end.
        assert fleet.stop() == [0, 0]
        until_s = time.monotonic() + 10
        while len(_spans(bodies)) < len(WANTED) and time.monotonic() < until_s:
            time.sleep(0.05)

    mine = {
        span.name: (name, span) for name, span in _spans(bodies) if span.trace_id.hex() == TRACE
    }
    assert mine.keys() == WANTED
    assert {name for name, (process, _) in mine.items() if process == "onestep-api"} == {
        "http POST"
    }
    request = mine["http POST"][1]
    for name in ("queue", "batch", "encode"):
        assert mine[name][1].parent_span_id == request.span_id, name
    batch = mine["batch"][1]
    assert [link.span_id for link in batch.links] == [request.span_id]
    for name in ("text", "denoise", "decode"):
        assert mine[name][1].parent_span_id == batch.span_id, name
    for histogram in ("request_duration", "time_to_first_image"):
        lines = [line for line in metrics.splitlines() if line.startswith(f"onestep_{histogram}_")]
        assert any(f'trace_id="{TRACE}"' in line for line in lines), histogram
    assert not [body for body in bodies if b"xq7canary" in body]
