"""What a segment, an exit head and the last pass cost by number of tokens: measured at start-up,
interpolated after.

Used by the exit policy only; an estimate that is off costs speed, never correctness.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from engine.model.exit_head import ExitHeads, Head
from engine.model.ops.interface import TokenBatch
from engine.worker.device_errors import is_out_of_memory
from engine.worker.segment_runner import SegmentRunner

TOKEN_COUNTS = (1, 2, 4, 8, 16, 32, 64)
_MOST_REPEATS = 3  # of a part's measurement
_ENOUGH_S = 0.05  # a part that has taken so long is not measured again: noise weighs little there


class CostCurve:
    """Seconds by number of tokens: piecewise linear through measured points, extended along the
    last piece.
    """

    def __init__(self, counts: Sequence[int], seconds: Sequence[float]) -> None:
        self._counts = list(counts)
        # Costs never fall as tokens are added: noise in the measurement must not make drafts look
        # free.
        self._seconds = [max(seconds[: i + 1]) for i in range(len(seconds))]

    def __call__(self, num_tokens: int) -> float:
        """Seconds for `num_tokens`; none for no tokens."""
        if num_tokens <= 0:
            return 0.0
        counts, seconds = self._counts, self._seconds
        if num_tokens <= counts[0] or len(counts) == 1:
            return seconds[0]
        right = min(bisect_left(counts, num_tokens), len(counts) - 1)
        x0, x1, y0, y1 = counts[right - 1], counts[right], seconds[right - 1], seconds[right]
        return y0 + (y1 - y0) * (num_tokens - x0) / (x1 - x0)


class CostModel:
    """Cost of the parts of a step."""

    def __init__(
        self, segments: Sequence[CostCurve], heads: Sequence[CostCurve], last_logits: CostCurve
    ) -> None:
        self._segments = list(segments)
        self._heads = list(heads)
        self._last_logits = last_logits

    def segment(self, index: int, num_tokens: int) -> float:
        """Seconds to run a segment."""
        return self._segments[index](num_tokens)

    def head(self, index: int, num_tokens: int) -> float:
        """Seconds to evaluate the exit head after a segment and choose drafts."""
        return self._heads[index](num_tokens)

    def logits(self, num_tokens: int) -> float:
        """Seconds of the final logits."""
        return self._last_logits(num_tokens)

    def rest(self, first_segment: int, num_tokens: int) -> float:
        """Seconds from a segment to the end, final logits included, for all tokens at once."""
        curves = self._segments[first_segment:]
        return sum(curve(num_tokens) for curve in curves) + self._last_logits(num_tokens)

    def plain(self, num_rows: int) -> float:
        """Seconds of a step without drafts."""
        return self.rest(0, num_rows)


def profile(
    runner: SegmentRunner,
    num_segments: int,
    heads: ExitHeads | None,
    block_size: int,
    device: torch.device,
) -> CostModel:
    """Time every part on this machine. Overwrites KV blocks: call before the first sequence."""
    all_heads = [] if heads is None else heads.heads
    measured: list[_Measured] = []
    for count in TOKEN_COUNTS:
        batch = _dummy_batch(count, block_size, device)
        try:
            measured.append(_measure(runner, num_segments, all_heads, batch))
        except (RuntimeError, MemoryError) as error:
            if not measured or not is_out_of_memory(error):
                raise
            break  # steps of so many tokens will not fit either
    counts = TOKEN_COUNTS[: len(measured)]
    return CostModel(
        [CostCurve(counts, times) for times in zip(*(m.segments for m in measured), strict=True)],
        [CostCurve(counts, times) for times in zip(*(m.heads for m in measured), strict=True)],
        CostCurve(counts, [m.logits for m in measured]),
    )


@dataclass(frozen=True, slots=True)
class _Measured:
    """Seconds of every part for one number of tokens."""

    segments: list[float]
    heads: list[float]
    logits: float


def _measure(
    runner: SegmentRunner, num_segments: int, heads: Sequence[Head], batch: TokenBatch
) -> _Measured:
    hidden = runner.embed(batch.positions)
    return _Measured(
        [_seconds(partial(runner.run, index, hidden, batch)) for index in range(num_segments)],
        [_seconds(partial(_evaluate, head, hidden)) for head in heads],
        _seconds(partial(runner.logits, hidden)),
    )


def _evaluate(head: Head, hidden: Tensor) -> Tensor:
    """What a drafter does with a head: evaluate it, and see how sure it is."""
    _, logits, _ = head(hidden, hidden)
    return logits.max(-1).values - logits.logsumexp(-1)


def _dummy_batch(count: int, block_size: int, device: torch.device) -> TokenBatch:
    """`count` tokens, each alone in its row at the first position of block 0."""
    zeros = torch.zeros(count, dtype=torch.int32, device=device)
    return TokenBatch(
        positions=zeros,
        slots=zeros,
        rows=torch.arange(count, dtype=torch.int32, device=device),
        block_tables=torch.zeros((count, 1), dtype=torch.int32, device=device),
        block_size=block_size,
    )


def _seconds(call: Callable[[], Tensor]) -> float:
    """The fastest of a few runs: what the machine can do, not what else it was doing."""
    best, spent = float("inf"), 0.0
    for _ in range(_MOST_REPEATS):
        started = time.perf_counter()
        result = call()
        if result.is_cuda:
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
        best, spent = min(best, elapsed), spent + elapsed
        if spent > _ENOUGH_S:
            break
    return best
