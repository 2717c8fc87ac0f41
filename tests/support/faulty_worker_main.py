"""`engine.worker.main` with faults: `python -m faulty_worker_main`.

The product has no switch for faults; this wraps its worker.
"""

import os
import sys

from faults import KILLER_TOKEN_ID, RAISING_TOKEN_ID

from engine.plan import StepPlan, StepResult
from engine.worker import main as worker_main
from engine.worker.worker import ModelWorker


class FaultyWorker(ModelWorker):
    """A worker that fails at prompts that begin with the ids in `faults`."""

    def execute(self, plan: StepPlan) -> StepResult:
        """See `ModelWorker.execute`."""
        first_ids = {start.token_ids[0] for start in plan.started}
        if KILLER_TOKEN_ID in first_ids:
            os.abort()
        if RAISING_TOKEN_ID in first_ids:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return super().execute(plan)


if __name__ == "__main__":
    worker_main.ModelWorker = FaultyWorker  # type: ignore[misc]
    sys.exit(worker_main.main())
