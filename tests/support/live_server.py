"""Runs uvicorn in a thread: ASGI test transports cannot show streaming or disconnects."""

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fake_engine import FakeEngine
from fastapi import FastAPI

from server.app import create_app
from server.http_server import listen, uvicorn_config
from server.sampling_defaults import sampling_defaults
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings

MODEL = "fake-model"


def fake_app(engine: FakeEngine, **settings: object) -> FastAPI:
    """Make the application around a fake engine, whose model has no files."""
    checked = ServerSettings.model_validate({"model": MODEL, **settings})

    async def load() -> ServedModel:
        await engine.start()
        defaults = sampling_defaults(
            checked.generation_config, Path("no-such-model"), checked.override_generation_config
        )
        return ServedModel(engine, engine.tokenizer, defaults)  # type: ignore[arg-type]

    return create_app(InferenceService((MODEL,), load), checked)


@contextmanager
def serving(app: FastAPI, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve an application, and yield its address."""
    with listen("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn_config(app, app.state.context.settings, tls))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.005)
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=10)
