"""A small HTTP server that answers chat requests with scripted events, and keeps the requests."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DONE = "[DONE]"


@dataclass
class Script:
    """What the server answers, and the bodies and keys that it was sent."""

    answers: list[list[Any]] = field(default_factory=list)  # events per request, in order
    error: tuple[int, str] | None = None  # status and message that refuse every completion
    models: list[str] = field(default_factory=lambda: ["scripted"])
    card: dict[str, Any] = field(default_factory=dict)  # what is listed of each besides its name
    unlisted: bool = False  # whether it refuses to list its models
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def delta(text: str, trace: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Return a chunk of an answer."""
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}}
    if trace is not None:
        choice["early_exit_trace"] = trace
    return {"choices": [choice]}


def final(num_tokens: int, **metrics: Any) -> dict[str, Any]:
    """Return the usage chunk."""
    return {"choices": [], "usage": {"completion_tokens": num_tokens}, "metrics": metrics}


def _handler(script: Script) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            cards = [{"id": name, **script.card} for name in script.models]
            self._send_json(404 if script.unlisted else 200, {"data": cards})

        def do_POST(self) -> None:
            script.keys.append(self.headers["Authorization"])
            script.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            if script.error:
                self._send_json(script.error[0], {"error": {"message": script.error[1]}})
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b": ping\n\n")
            for event in script.answers.pop(0):
                data = event if isinstance(event, str) else json.dumps(event)
                self.wfile.write(f"data: {data}\n\n".encode())

        def _send_json(self, status: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def scripted_server() -> Iterator[Script]:
    """Serve a script on a free port."""
    script = Script()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(script))
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
