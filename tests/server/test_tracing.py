import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from starlette.testclient import TestClient

from server.cli import main
from server.tracing import TracingUnavailable, make_tracer

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
BODY = {"model": MODEL, "prompt": "secret", "max_tokens": 5, "temperature": 0.5}


class Receiver:
    """An OTLP endpoint that keeps the spans it receives."""

    def __init__(self) -> None:
        self.spans: list = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    spans.extend(span for each in resource.scope_spans for span in each.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1/traces"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def ask(receiver: Receiver, engine: FakeEngine, body: dict, **headers: str) -> None:
    """Send one request; closing the application afterwards sends its spans."""
    app = fake_app(engine, otlp_traces_endpoint=receiver.url)
    with TestClient(app, raise_server_exceptions=False) as client:
        client.post("/v1/completions", json=body, headers=headers)


def attributes(span) -> dict:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def test_a_generation_is_a_span_with_vllms_attributes(receiver):
    ask(receiver, FakeEngine(), BODY, **{"X-Request-Id": "mine"})

    (span,) = receiver.spans
    said = attributes(span)
    assert (span.name, span.kind) == ("llm_request", 2)  # server
    assert said["gen_ai.response.model"] == MODEL
    assert said["gen_ai.usage.prompt_tokens"] == 6
    assert said["gen_ai.usage.completion_tokens"] == 5
    assert said["gen_ai.request.temperature"] == 0.5
    assert said["gen_ai.request.max_tokens"] == 5
    assert said["adadecode.http_request_id"] == "mine"
    assert said["adadecode.num_accepted_tokens"] == 5
    assert 0 < said["gen_ai.latency.time_to_first_token"] <= said["gen_ai.latency.e2e"]
    duration_s = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
    assert duration_s == pytest.approx(said["gen_ai.latency.e2e"], abs=1e-4)
    assert b"secret" not in span.SerializeToString()


def test_a_clients_trace_goes_on(receiver):
    ask(receiver, FakeEngine(), BODY, traceparent=f"00-{TRACE_ID}-{SPAN_ID}-01")

    (span,) = receiver.spans
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)


def test_a_malformed_trace_context_starts_a_new_trace(receiver):
    ask(receiver, FakeEngine(), BODY, traceparent="00-nonsense")

    assert [span.parent_span_id for span in receiver.spans] == [b""]


def test_a_failed_generation_is_an_error_span(receiver):
    ask(receiver, FakeEngine(failure=RuntimeError("broken")), BODY)

    assert [span.status.code for span in receiver.spans] == [2]


def test_every_choice_has_its_span(receiver):
    ask(receiver, FakeEngine(), BODY | {"n": 3})

    assert [attributes(span)["gen_ai.request.n"] for span in receiver.spans] == [3, 3, 3]


def test_without_an_endpoint_nothing_is_traced():
    assert make_tracer(None, MODEL) is None


@pytest.fixture
def without_opentelemetry(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)


def test_missing_packages_are_named(without_opentelemetry):
    with pytest.raises(TracingUnavailable, match="pip install opentelemetry-sdk"):
        make_tracer("http://127.0.0.1:1/v1/traces", MODEL)


@pytest.mark.filterwarnings("error")
def test_the_server_does_not_start_without_them(without_opentelemetry, capsys):
    status = main(["serve", "--port", "0", "--otlp-traces-endpoint", "http://127.0.0.1:1"])

    assert status == 1
    assert "needs OpenTelemetry" in capsys.readouterr().err
