"""`adadecode serve`: settings → model → application → HTTP server. Never imports torch."""

import argparse
import asyncio
import logging
import os
import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path

from starlette.types import ASGIApp

from engine.build import build_engine
from engine.checkpoint import find_heads, resolve_model
from engine.errors import EngineError
from engine.pauses import limit_pauses, spare_what_is_loaded
from server.http_server import CannotListen, DrainingServer, listen
from server.logs import set_up_logging
from server.progress import LoadProgress
from server.sampling_defaults import sampling_defaults
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings
from server.settings_sources import SettingsError, add_arguments, load_settings
from server.summary import start_up_summary
from server.tls import TlsError, tls_context
from server.tracing import TracingUnavailable

__all__ = ["add_arguments", "run"]

_OWN_ERRORS = (EngineError, SettingsError, CannotListen, TlsError, TracingUnavailable, OSError)

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a clean stop, 1 when it could not start, 2 for bad settings."""
    try:
        settings = load_settings(args, os.environ)
    except SettingsError as error:
        return _refuse(error, 2)
    set_up_logging(settings.log_level, has_json_access=settings.access_log == "json")
    limit_pauses()
    try:
        tls = tls_context(settings)
        listener = listen(settings.host, settings.port)
    except (CannotListen, TlsError) as error:
        return _refuse(error, 1)
    host, port = listener.getsockname()[:2]
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    url = f"{'https' if tls else 'http'}://{address}"
    if not settings.api_keys and not host.startswith("127.") and host != "::1":
        logger.warning(
            "listening on %s without an --api-key: anyone who reaches it can use it", host
        )
    with listener, _announced(url, settings.address_file):
        return asyncio.run(_serve(settings, url, listener, tls))


@contextmanager
def _announced(url: str, file: Path | None) -> Iterator[None]:
    """Keep the address in a file, for `server.probe` and for whoever asks for --port 0."""
    if file is None:
        yield
        return
    try:
        file.write_text(f"{url}\n", encoding="utf-8")
    except OSError as error:  # such as a container's read-only file system
        logger.warning("--address-file %s cannot be written: %s", file, error.strerror)
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()


async def _serve(
    settings: ServerSettings, url: str, listener: socket.socket, tls: ssl.SSLContext | None
) -> int:
    """Load and serve; returns the exit status."""
    service = InferenceService(settings.model_names, partial(_load, settings, url))
    service.start()
    server = DrainingServer(_make_app(service, settings), service, settings, tls)
    try:
        await server.serve(sockets=[listener])
    except TracingUnavailable as error:
        await service.stop()
        return _refuse(error, 1)
    if service.failure is not None:
        return _refuse(service.failure, 1)
    return 0


async def _make_app(service: InferenceService, settings: ServerSettings) -> ASGIApp:
    """Make the application while the worker's process starts, whose import of torch takes longer.

    Raises:
        TracingUnavailable: traces were asked for, and their packages are not installed.
    """
    module = await asyncio.to_thread(import_module, "server.app")
    app: ASGIApp = module.create_app(service, settings)
    return app


async def _load(settings: ServerSettings, url: str) -> ServedModel:
    """Resolve, load and start the model; what blocks runs on a thread, so probes are answered."""
    with closing(LoadProgress()) as progress:
        directory = await asyncio.to_thread(
            resolve_model, settings.model, revision=settings.revision, progress=progress
        )
        defaults = sampling_defaults(
            settings.generation_config, directory, settings.override_generation_config
        )
        heads = settings.heads or find_heads(settings.model, directory)
        config = settings.engine_config(directory, heads)
        engine = await build_engine(config, progress)
        try:
            await engine.start()
        except BaseException:  # also when a signal cancels the load: no worker may stay behind
            await engine.stop()
            raise
    assert engine.info is not None, "a started engine knows its model"
    spare_what_is_loaded()
    try:
        summary = start_up_summary(settings, engine.info, config.exits.heads, url, defaults)
        print(summary, flush=True)
    except OSError as error:  # nobody reads it, or the disk is full
        logger.warning("the summary could not be printed: %s", error)
    return ServedModel(engine, engine.tokenizer, defaults)


def _refuse(error: Exception, status: int) -> int:
    """Print one clear line, and log a traceback if the error is none of ours; return `status`."""
    if not isinstance(error, _OWN_ERRORS):
        logger.error("failed", exc_info=error)
    print(f"adadecode serve: {error}", file=sys.stderr)
    return status
