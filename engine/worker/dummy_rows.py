"""Dummy rows for measuring the cost of whole steps, with and without drafts, including the host's
work.

On a device that computes after calls have returned, a part's own time says little: between parts
the device waits for the host, and the longer the more rows there are.
"""

from collections.abc import Callable
from functools import partial

from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads
from engine.plan import RowPlan, RowResult, SequenceStart
from engine.request import EarlyExitOptions, SamplingParams
from engine.worker.chances import Chances
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.exit_policy import ExitPolicy
from engine.worker.kv_cache import KvCache
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.sampler import Sampler
from engine.worker.segment_runner import SegmentRunner
from engine.worker.sequence_state import SequenceState

_IN_A_ROW = 4  # number of plain steps measured in a row
_BLOCK_SIZE = 16  # need not be the cache's: the rows stay within a block


class DummyRows:
    """Rows that sample, each at its first token in block 0."""

    def __init__(
        self,
        decoder: Decoder,
        cache: KvCache,
        runner: SegmentRunner,
        heads: ExitHeads | None,
    ) -> None:
        self._plain = DecodeStep(decoder, cache, _BLOCK_SIZE, runner=runner)
        self._state = decoder.final_norm.clone()  # any numbers
        self._drafting: DecodeStep | None = None
        self.num_pending: dict[int, int] = {}  # number of rows -> tokens pending at the step's end
        if heads is not None:
            self._drafting = DecodeStep(
                decoder, cache, _BLOCK_SIZE, drafter=_eager_drafter(decoder, heads), runner=runner
            )

    def plain_step(self, count: int) -> Callable[[], object]:
        """Return a step of `count` rows without drafts."""
        return self._step(self._plain, count, max_drafts=0)

    def plain_steps(self, count: int) -> list[Callable[[], object]]:
        """Return steps of `count` rows without drafts, to be called one after the other.

        For all but the first, the pass may already have been launched.
        """
        last_len = 1 + _IN_A_ROW
        states = [SequenceState(_start(number, last_len)) for number in range(count)]

        def step(start: int) -> list[RowResult]:
            plans = [_plan(number, max_drafts=0, start=start) for number in range(count)]
            return self._plain.run(plans, states)

        return [partial(step, start) for start in range(_IN_A_ROW)]

    def drafting_step(self, count: int) -> Callable[[], object]:
        """Return a step of `count` rows in which each has a draft, if a head names one.

        Every exit is evaluated, the first once more when the drafts arrive there.
        """
        assert self._drafting is not None, "there are heads"
        step = self._step(self._drafting, count, max_drafts=1)

        def call() -> object:
            results = step()
            self.num_pending[count] = count + sum(len(result.drafts) for result in results)
            return results

        return call

    def _step(self, step: DecodeStep, count: int, max_drafts: int) -> Callable[[], list[RowResult]]:
        # Nothing is launched ahead: every call is a step of its own.
        states = [SequenceState(_start(number, last_len=2)) for number in range(count)]
        plans = [_plan(number, max_drafts) for number in range(count)]

        def call() -> list[RowResult]:
            for state in states:
                del state.token_ids[1:]
                state.last_hidden = self._state
            return step.run(plans, states)

        return call


def _eager_drafter(decoder: Decoder, heads: ExitHeads) -> PolicyDrafter:
    """Return a drafter that evaluates and drafts wherever it can: to its policy both are free."""
    layers = heads.exit_layers
    free, end = CostCurve([1], [0.0]), CostCurve([1], [1.0])
    policy = ExitPolicy(
        len(layers), CostModel([free] * (len(layers) + 1), [free] * len(layers), end)
    )
    return PolicyDrafter(
        policy,
        Chances(layers, heads.calibration),
        exit_layers=layers,
        exit_evaluator=ExitEvaluator(heads, Sampler(decoder.ops)),
        has_lookup=False,
    )


def _plan(number: int, max_drafts: int, start: int = 0) -> RowPlan:
    return RowPlan(
        sequence_id=number,
        start=start,
        num_tokens=1,
        block_table=[0],
        max_draft_tokens=max_drafts,
        is_decoding=True,
    )


def _start(number: int, last_len: int) -> SequenceStart:
    return SequenceStart(
        sequence_id=number,
        token_ids=[0],
        num_prompt_tokens=1,
        sampling=SamplingParams(seed=number),
        early_exit=EarlyExitOptions(lookup=False),
        stop_token_ids=[],
        last_len=last_len,
    )
