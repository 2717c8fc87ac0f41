"""A worker that really breaks its device, once, by a token id outside the vocabulary.

It embeds it beside a step, whose own pass may have been launched in the step before and read no
token from here. The embedding reads out of range, as it would because of a bug; on a GPU the
kernel's assert leaves the process without a usable device. Needs no msgspec
(`asserting_worker_main` does).
"""

import json
import os
from pathlib import Path

import torch

from engine.plan import StepPlan, StepResult
from engine.worker.device_errors import is_device_broken, is_out_of_memory, is_row_fault
from engine.worker.worker import ModelWorker

# Names a file for what was found; once it exists, nothing breaks any more.
VERDICT_VARIABLE = "ADADECODE_TEST_VERDICT"
_AFTER_STEPS = 8
_NO_TOKEN = 1_000_000


class AssertingWorker(ModelWorker):
    """A worker that breaks after some steps, and writes down how the error was classified."""

    _num_steps = 0

    def execute(self, plan: StepPlan) -> StepResult:
        """See `ModelWorker.execute`."""
        verdict = Path(os.environ[VERDICT_VARIABLE])
        self._num_steps += bool(plan.rows)
        breaks = plan.rows and self._num_steps > _AFTER_STEPS and not verdict.exists()
        try:
            if breaks:
                device = self.decoder.ops.device
                self.decoder.embed(torch.tensor([_NO_TOKEN], dtype=torch.int32, device=device))
            return super().execute(plan)
        except Exception as error:
            if verdict.exists():
                raise
            said = {
                "kind": type(error).__name__,
                "message": str(error),
                "is_device_broken": is_device_broken(error),
                "is_out_of_memory": is_out_of_memory(error),
                "is_row_fault": is_row_fault(error),
                "num_rows": len(plan.rows),
            }
            verdict.write_text(json.dumps(said))
            raise
