"""A thread of the worker that prepares structures while steps run."""

import logging
import threading
from collections.abc import Callable

from engine.request import Structure
from engine.wire import Prepared
from engine.worker.connection import Connection

logger = logging.getLogger(__name__)


class Preparing:
    """Answers every structure that comes when it is ready, or cannot be."""

    def __init__(self, connection: Connection, prepare: Callable[[Structure], None]) -> None:
        self._connection = connection
        self._prepare = prepare

    def start(self) -> None:
        """Go on until the socket closes."""
        threading.Thread(target=self._run, name="preparing", daemon=True).start()

    def _run(self) -> None:
        try:
            while (structure := self._connection.receive()) is not None:
                assert isinstance(structure, Structure), "nothing else comes here"
                try:
                    self._prepare(structure)
                except Exception:  # the sequence that brings it will say so
                    logger.exception("a structure cannot be prepared")
                self._connection.send(Prepared())
        except OSError:
            logger.debug("the server is gone")
