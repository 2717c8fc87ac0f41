"""`adadecode serve`: settings → model → application → HTTP server. Never imports torch."""

import argparse
import asyncio
import logging
import os
import sys
from contextlib import closing
from functools import partial

from engine.build import build_engine
from engine.checkpoint import find_heads, resolve_model
from engine.errors import EngineError
from server.app import create_app
from server.http_server import CannotListen, DrainingServer, listen
from server.logs import set_up_logging
from server.progress import LoadProgress
from server.service import InferenceService, ServedModel
from server.settings import ServerSettings
from server.settings_sources import SettingsError, add_arguments, load_settings
from server.summary import start_up_summary

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal; 0 after a clean stop, 1 when it could not start, 2 for bad settings."""
    try:
        settings = load_settings(args, os.environ)
    except SettingsError as error:
        return _refuse(error, 2)
    set_up_logging(settings.log_level)
    try:
        listener = listen(settings.host, settings.port)
    except CannotListen as error:
        return _refuse(error, 1)
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if not settings.api_key and not host.startswith("127.") and host != "::1":
        logger.warning(
            "listening on %s without an --api-key: anyone who reaches it can use it", host
        )
    service = InferenceService(settings.model_names, partial(_load, settings, url))
    app = create_app(service, settings)
    DrainingServer(app, service, settings.shutdown_timeout).run(sockets=[listener])
    if service.failure is not None:
        return _refuse(service.failure, 1)
    return 0


async def _load(settings: ServerSettings, url: str) -> ServedModel:
    """Resolve, load and start everything; what blocks runs on a thread, to keep probes answered."""
    with closing(LoadProgress()) as progress:
        directory = await asyncio.to_thread(resolve_model, settings.model, progress=progress)
        heads = settings.heads or find_heads(settings.model, directory)
        config = settings.engine_config(directory, heads)
        engine = await asyncio.to_thread(build_engine, config, progress)
        try:
            await engine.start()
        except BaseException:  # also when a signal cancels the load: no worker may stay behind
            await engine.stop()
            raise
    assert engine.info is not None, "a started engine knows its model"
    print(start_up_summary(settings, engine.info, config.exits.heads, url), flush=True)
    return ServedModel(engine, engine.info, engine.tokenizer)


def _refuse(error: Exception, status: int) -> int:
    """One clear line, no traceback unless the error is none of ours."""
    if not isinstance(error, EngineError | SettingsError | CannotListen | OSError):
        logger.error("could not start", exc_info=error)
    print(f"adadecode serve: {error}", file=sys.stderr)
    return status
