"""`engine.worker.main` with a device that breaks once: `python -m asserting_worker_main`."""

import sys

from asserting_worker import AssertingWorker

from engine.worker import main as worker_main

if __name__ == "__main__":
    worker_main.ModelWorker = AssertingWorker  # type: ignore[misc]
    sys.exit(worker_main.main())
