"""A worker process without a model: `python -m light_worker_main SOCKET PIPE SECONDS`.

It computes nothing and never answers a plan. It writes its process id to the file LIGHT_WORKER_PID.
If that file exists already, it exits before it has loaded, so that only the first worker lives.
Loading takes LIGHT_WORKER_LOADS_S seconds.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

from fake_worker import FakeWorker

from engine.heartbeat import Heartbeat
from engine.wire import HEADER, Wire, frame_length


def main() -> int:
    """Serve until the socket closes."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pid_file = Path(os.environ["LIGHT_WORKER_PID"])
    if pid_file.exists():
        return 3
    pid_file.write_text(str(os.getpid()))
    Heartbeat(int(sys.argv[2]), float(sys.argv[3])).start()
    time.sleep(float(os.environ.get("LIGHT_WORKER_LOADS_S", "0")))
    wire, worker = Wire(), FakeWorker()
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rwb") as file:
        file.read(frame_length(file.read(HEADER.size))[0])  # skips the configuration
        file.write(wire.encode(worker.info))
        file.flush()
        file.read()  # ignores whatever is asked, until the end
    return 0


if __name__ == "__main__":
    sys.exit(main())
