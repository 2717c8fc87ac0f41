"""The worker process: `python -m engine.worker.main SOCKET PIPE SECONDS SOCKET`.

It reads plans from the first socket and answers them, writes a heartbeat to the pipe at an interval
of SECONDS, and prepares the structures that come over the second socket. It ends when the first
socket or the pipe closes, that is when the server is gone: a worker never outlives its server.
"""

import logging
import os
import signal
import socket
import sys
import traceback

from engine.config import EngineConfig
from engine.heartbeat import Heartbeat
from engine.pauses import spare_what_is_loaded
from engine.plan import StepPlan
from engine.wire import Failure, Message, Progress
from engine.worker.connection import Connection
from engine.worker.preparing import Preparing
from engine.worker.worker import ModelWorker

# The server's work between steps takes microseconds, and clients wait for it. Without this, if as
# many threads compute as there are cores, the server would wait for one of them to be preempted.
_NICENESS = 3

logger = logging.getLogger("engine.worker")

_IDLE_S = 0.02  # time without a plan after which the worker counts as idle


def serve(connection: Connection, preparations: Connection) -> None:
    """Load what the first frame says, then execute plans until the socket closes."""
    config = connection.receive()
    assert isinstance(config, EngineConfig), "the first frame is the configuration"
    try:
        worker = ModelWorker(config, lambda text, part: connection.send(Progress(text, part)))
    except Exception as error:
        logger.debug("loading failed", exc_info=True)
        connection.send(Failure(type(error).__name__, str(error)))
        return
    Preparing(preparations, worker.prepare).start()
    spare_what_is_loaded()
    connection.send(worker.info)
    while (plan := connection.receive()) is not None:
        assert isinstance(plan, StepPlan), "after loading, every frame is a plan"
        connection.send(execute(worker, plan))
        rest(worker, connection)
    worker.close()


def rest(worker: ModelWorker, connection: Connection) -> None:
    """Do what can wait between steps: little while plans come, more once they do not."""
    worker.rest(is_idle=False)
    while not connection.is_readable(_IDLE_S) and worker.rest(is_idle=True):
        pass


def execute(worker: ModelWorker, plan: StepPlan) -> Message:
    """Execute a plan; return its result, or the failure it ended in."""
    try:
        return worker.execute(plan)
    except Exception as error:
        logger.error("step %d failed:\n%s", plan.step_id, traceback.format_exc())
        return Failure(type(error).__name__, str(error))


def main() -> int:
    """Run the worker process; return its exit status."""
    # Signals to the process group reach server and worker. The server decides when its worker ends:
    # it may let open requests finish first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(_NICENESS)
    logging.basicConfig(
        level=os.environ.get("ADADECODE_LOG_LEVEL", "info").upper(), format="%(message)s"
    )
    Heartbeat(int(sys.argv[2]), float(sys.argv[3])).start()
    sockets = (socket.socket(fileno=int(number)) for number in (sys.argv[1], sys.argv[4]))
    try:
        serve(*map(Connection, sockets))
    except (BrokenPipeError, ConnectionResetError):
        logger.info("the server is gone, the worker ends")
    return 0


if __name__ == "__main__":
    sys.exit(main())
