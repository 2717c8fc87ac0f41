"""Runs the scheduler and a worker in one thread: no server, no event loop, no tokenizer.

For benchmarks, training and tests. It takes the same steps as the server.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from engine.config import EngineConfig
from engine.errors import UnsupportedOption
from engine.limits import ModelLimits
from engine.plan import StepPlan, StepResult, WorkerInfo
from engine.policy_reason import PolicyReport
from engine.request import (
    DraftFigures,
    FinishReason,
    GenerationRequest,
    Structure,
    TokenLogprobs,
    TokenTrace,
)
from engine.scheduler import Committed, Scheduler
from engine.trace import token_traces


class SynchronousWorker(Protocol):
    """A worker that computes in the calling thread, such as `engine.worker.worker.ModelWorker`."""

    @property
    def info(self) -> WorkerInfo:
        """Facts about the loaded model."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""

    def prepare(self, structure: Structure) -> None:
        """Compile a structure in advance; called in another thread, while steps run."""

    def rest(self, *, is_idle: bool) -> bool:
        """Do other work between steps, such as learning; returns whether there was any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationResult:
    """A finished request."""

    token_ids: tuple[int, ...]  # output only
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprobs, ...]
    prompt_logprobs: tuple[TokenLogprobs, ...]
    embedding: tuple[float, ...] | None
    trace: tuple[TokenTrace, ...]
    draft_figures: DraftFigures
    num_cached_tokens: int  # prompt tokens found in the prefix cache
    num_preemptions: int = field(compare=False)  # depends on the other requests
    error: str | None  # with FinishReason.ERROR: why


class OfflineEngine:
    """Generates batches of requests on one worker."""

    def __init__(self, config: EngineConfig, worker: SynchronousWorker | None = None) -> None:
        """Load the model unless a worker is given.

        Raises:
            ModelLoadError: The model cannot be served.
        """
        self._config = config
        if worker is None:
            from engine.worker.worker import ModelWorker

            worker = ModelWorker(config)
        self._worker = worker
        self.info = worker.info
        self._limits = ModelLimits.of(self.info)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        on_step: Callable[[Sequence[Committed]], None] | None = None,
        max_num_seqs: int | None = None,
    ) -> list[GenerationResult]:
        """Run all requests to their end, batched as the scheduler sees fit.

        Args:
            requests: What to generate; results come in the same order.
            on_step: Called after every step with the rows committed in it.
            max_num_seqs: Limits the sequences running at once below the configured number.

        Raises:
            RequestError: A request could never run, or has stop strings, which need text.
        """
        if any(request.sampling.stop for request in requests):
            raise UnsupportedOption("Stop strings need a tokenizer.", param="stop")
        most = self._config.scheduler.max_num_seqs
        config = replace(
            self._config.scheduler,
            max_num_seqs=most if max_num_seqs is None else min(max_num_seqs, most),
            max_num_queued_requests=len(requests),
        )
        scheduler = Scheduler(config, self._limits)
        sequences = [scheduler.add(request) for request in requests]
        outputs: dict[int, list[Committed]] = {s.sequence_id: [] for s in sequences}
        while (plan := scheduler.schedule()) is not None:
            committed = scheduler.commit(plan, self._worker.execute(plan))
            self._worker.rest(is_idle=False)
            for item in committed:
                outputs[item.sequence.sequence_id].append(item)
            if on_step is not None:
                on_step(committed)
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
            prompt_logprobs=tuple(sequence.prompt_logprobs),
            embedding=sequence.embedding,
            trace=tuple(
                entry
                for item in items
                for entry in token_traces(item.result, item.num_new_tokens, self.info.num_layers)
            ),
            draft_figures=sequence.figures(PolicyReport()),
            num_cached_tokens=sequence.num_cached_tokens,
            num_preemptions=sequence.num_preemptions,
            error=sequence.error,
        )
