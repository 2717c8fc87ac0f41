"""`adadecode serve` with `light_worker_main` as its worker: light_serve.py FLAGS…"""

import sys
from functools import partial

from engine import build, supervisor
from server.cli import main

if __name__ == "__main__":
    build.WorkerProcess = partial(build.WorkerProcess, module="light_worker_main")  # type: ignore[misc, assignment]
    supervisor._LONGEST_PAUSE_S = 0.05
    sys.exit(main(["serve", *sys.argv[1:]]))
