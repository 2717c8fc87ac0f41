"""A fake engine served as `adadecode serve` would: fake_serve.py PORT DRAIN_S TOKEN_DELAY_S."""

import sys
from functools import partial

from fake_engine import ByteTokenizer, FakeEngine
from live_server import MODEL

from server.app import create_app
from server.http_server import DrainingServer, listen
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings


async def _load(engine: FakeEngine) -> ServedModel:
    await engine.start()
    return ServedModel(engine, ByteTokenizer())  # type: ignore[arg-type]


def main(port: int, drain_timeout_s: float, token_delay_s: float) -> None:
    """Serve until a signal."""
    engine = FakeEngine("x" * 20, token_delay_s=token_delay_s)
    service = InferenceService((MODEL,), partial(_load, engine))
    settings = ServerSettings(model=MODEL, shutdown_timeout=drain_timeout_s)
    app = create_app(service, settings)
    DrainingServer(app, service, settings).run(sockets=[listen("127.0.0.1", port)])


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
