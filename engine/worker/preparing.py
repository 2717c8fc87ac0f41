"""A thread of the worker that prepares structures while steps run."""

import logging
import threading
from collections.abc import Callable

from engine.request import Structure
from engine.wire import Prepared
from engine.worker.connection import Connection

logger = logging.getLogger(__name__)


class Preparing:
    """Receives structures and answers each one when it is compiled or has failed to compile."""

    def __init__(self, connection: Connection, prepare: Callable[[Structure], None]) -> None:
        self._connection = connection
        self._prepare = prepare

    def start(self) -> None:
        """Start the thread; it ends when the socket closes."""
        threading.Thread(target=self._run, name="preparing", daemon=True).start()

    def _run(self) -> None:
        try:
            while (structure := self._connection.receive()) is not None:
                assert isinstance(structure, Structure), "nothing else comes here"
                try:
                    self._prepare(structure)
                except Exception:  # the sequence that has the structure will report it
                    logger.exception("a structure cannot be prepared")
                self._connection.send(Prepared())
        except OSError:
            logger.debug("the server is gone")
