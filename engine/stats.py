"""What the engine counts: plain numbers. Knows no metric names."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from engine.plan import Learning, RowResult, StepPlan, StepResult
from engine.policy_reason import PolicyReport
from engine.request import FinishReason


@dataclass(slots=True, kw_only=True)
class EngineStats:
    """Totals since the start, and the present state."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_blocks_used: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    worker_restarts_total: int = 0
    recovery_time_s_total: float = 0.0  # from a worker's loss until the next was ready
    prefix_cache_queries_total: int = 0  # prompt tokens looked up in the prefix cache
    prefix_cache_hits_total: int = 0  # prompt tokens found there, so not computed
    prompt_tokens_computed_total: int = 0  # not found in the cache, of prompts that ran
    finished_total: dict[FinishReason, int] = field(
        default_factory=lambda: dict.fromkeys(FinishReason, 0)
    )
    drafts_total: int = 0  # rows with drafts, summed over steps
    draft_tokens_total: int = 0
    accepted_tokens_total: int = 0
    accepted_per_position: list[int] = field(default_factory=list)
    drafted_by_layer: dict[int, int] = field(default_factory=dict)
    accepted_by_layer: dict[int, int] = field(default_factory=dict)
    steps_total: int = 0
    worker_time_s_total: float = 0.0
    policy: PolicyReport = field(default_factory=PolicyReport)
    steps_by_num_tokens: dict[int, int] = field(default_factory=dict)  # known tokens -> steps
    refused_total: int = 0  # requests that found the queue full
    corrupted_total: int = 0  # requests that failed because the model computed NaN or infinity
    learning: Learning = field(default_factory=Learning)  # totals, and shares in the latest trial

    def count_step(self, plan: StepPlan, result: StepResult, rows: Iterable[RowResult]) -> None:
        """Add a step's outcome; of its rows, only those of sequences that had not ended meanwhile.

        Args:
            plan: The step.
            result: What it gave.
            rows: The rows that were committed.
        """
        num_tokens = sum([row.num_tokens for row in plan.rows])
        self.steps_by_num_tokens[num_tokens] = self.steps_by_num_tokens.get(num_tokens, 0) + 1
        self.steps_total += 1
        self.worker_time_s_total += result.duration_s
        self.policy = result.policy
        if result.learning is not None:
            self._count_learning(result.learning)
        for row in rows:
            if row.is_corrupt:
                self.corrupted_total += 1
            if row.drafts:
                self._count_drafts(row)

    def _count_learning(self, learning: Learning) -> None:
        """Add to the totals, which outlive a worker; the shares are its own latest trial's."""
        before = self.learning
        self.learning = replace(
            learning,
            num_updates=before.num_updates + learning.num_updates,
            num_adopted=before.num_adopted + learning.num_adopted,
            num_dropped=before.num_dropped + learning.num_dropped,
            seconds=before.seconds + learning.seconds,
        )

    def _count_drafts(self, row: RowResult) -> None:
        self.drafts_total += 1
        self.draft_tokens_total += len(row.drafts)
        missing = 1 + max(draft.place for draft in row.drafts) - len(self.accepted_per_position)
        self.accepted_per_position += [0] * missing
        for draft in row.drafts:
            layer = draft.exit_layer
            self.drafted_by_layer[layer] = self.drafted_by_layer.get(layer, 0) + 1
            if draft.accepted:
                self.accepted_tokens_total += 1
                self.accepted_per_position[draft.place] += 1
                self.accepted_by_layer[layer] = self.accepted_by_layer.get(layer, 0) + 1
