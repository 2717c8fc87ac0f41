"""The scheduler and a worker, run to the end in one thread: no server, no event loop, no tokenizer.

For benchmarks, training and tests. What it does is what the server does, step for step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.config import EngineConfig
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.request import (
    DraftFigures,
    FinishReason,
    GenerationRequest,
    TokenLogprobs,
    TokenTrace,
)
from engine.scheduler import Committed, ModelLimits, Scheduler
from engine.trace import token_traces


class SynchronousWorker(Protocol):
    """A worker in this thread, such as `engine.worker.worker.ModelWorker`."""

    @property
    def info(self) -> WorkerInfo:
        """Facts of the loaded model."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A finished request."""

    token_ids: tuple[int, ...]  # output only
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...]
    trace: tuple[TokenTrace, ...]
    draft_figures: DraftFigures


class OfflineEngine:
    """Generates batches of requests on one worker."""

    def __init__(self, config: EngineConfig, worker: SynchronousWorker | None = None) -> None:
        """Load the model unless a worker is given.

        Raises:
            ModelLoadError: if the model cannot be served.
        """
        self._config = config
        if worker is None:
            from engine.worker.worker import ModelWorker

            worker = ModelWorker(config)
        self._worker = worker
        self.info = worker.info
        self._limits = ModelLimits(
            num_blocks=self.info.num_blocks,
            block_size=self.info.block_size,
            max_model_len=self.info.max_model_len,
            max_draft_tokens=self.info.max_draft_tokens,
            eos_token_ids=tuple(self.info.eos_token_ids),
        )

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[GenerationResult]:
        """Run all requests to their end, batched as the scheduler sees fit.

        Args:
            on_tokens: Called after every step with the output tokens it brought.

        Raises:
            RequestError: if one of them could never run.
        """
        scheduler = Scheduler(self._config.scheduler, self._limits)
        sequences = [scheduler.add(request) for request in requests]
        outputs: dict[int, list[Committed]] = {s.sequence_id: [] for s in sequences}
        while (plan := scheduler.schedule()) is not None:
            committed = scheduler.commit(plan, self._worker.execute(plan))
            for item in committed:
                outputs[item.sequence.sequence_id].append(item)
                if item.sequence.is_finished:
                    scheduler.retire(item.sequence)
            if on_tokens is not None:
                on_tokens(sum(item.num_new_tokens for item in committed))
        return [self._result(outputs[s.sequence_id]) for s in sequences]

    def _result(self, items: Sequence[Committed]) -> GenerationResult:
        sequence = items[-1].sequence
        assert sequence.finish_reason is not None
        return GenerationResult(
            token_ids=tuple(sequence.token_ids[sequence.num_prompt_tokens :]),
            finish_reason=sequence.finish_reason,
            logprobs=tuple(
                entry for item in items for entry in item.result.logprobs[: item.num_new_tokens]
            ),
            trace=tuple(
                entry
                for item in items
                for entry in token_traces(item.result, item.num_new_tokens, self.info.num_layers)
            ),
            draft_figures=sequence.figures(),
        )
