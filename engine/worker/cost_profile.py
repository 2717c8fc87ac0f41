"""Times every part of a step on this machine, once; later starts read the measurement.

The file's name is a hash of everything that costs depend on; an old file is measured again. The
parts take turns, and the fastest of a few rounds counts: what the machine can do, not what else it
was doing. On a GPU whole steps are timed, too, because the host's work for them belongs to no part.

If the machine was busy all the time, the file says too much. So a start that reads it times a plain
step, and measures again if that is clearly faster. A slower step says nothing: the machine may be
busy now, and costs that are too small are corrected while serving.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from math import ceil, inf
from pathlib import Path

import torch
from torch import Tensor

from engine.model.exit_head import ExitHeads, Head
from engine.model.noise import SaltedIds
from engine.model.ops.interface import Ops, TokenBatch
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.device_errors import is_out_of_memory
from engine.worker.dummy_rows import DummyRows
from engine.worker.segment_runner import SegmentRunner

logger = logging.getLogger(__name__)

# Numbers of tokens that parts are timed with. They are close where a few drafts are weighed, for
# costs rise in steps there (PANELS_AT_ONCE of panel.h; a GPU's graphs have few sizes).
TIMED_COUNTS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32, 64)
_ROUNDS = 3
_ENOUGH_S = 2.0  # no further round begins after this time
_QUIET = 1.25  # on a quiet machine the two fastest rounds differ by less than this factor
_STALE_S = 14 * 24 * 3600.0  # age at which a measurement is repeated
_FASTER = 1.3  # factor by which a plain step has to be faster than the file says to distrust it
_LONGEST_CHECK_S = 0.2  # no further step is timed for that check after this time

_STEADY = "steady step"  # the part name of plain steps that follow each other

Seconds = dict[str, dict[int, float]]  # part -> tokens -> seconds


@dataclass(frozen=True, slots=True)
class Profiler:
    """Times the parts of a step."""

    runner: SegmentRunner
    num_segments: int
    heads: ExitHeads | None
    block_size: int
    ops: Ops
    clock: Callable[[], float] = time.perf_counter
    rows: DummyRows | None = None  # runs whole steps, where they cost more than their parts

    def measure(self) -> tuple[Seconds, bool]:
        """Time every part. Overwrites KV blocks: call before the first sequence.

        Returns:
            The times, and whether the machine was quiet enough to keep them.
        """
        rounds: list[float] = []
        stopwatch = _Stopwatch(self.clock, self.ops)
        counts = list(TIMED_COUNTS)
        while len(rounds) < _ROUNDS and sum(rounds) < _ENOUGH_S:
            started = self.clock()
            for count in list(counts):
                try:
                    self._time(count, stopwatch)
                except (RuntimeError, MemoryError) as error:
                    if count == counts[0] or not is_out_of_memory(error):
                        raise
                    counts = counts[: counts.index(count)]  # larger steps will not fit either
                    break
            rounds.append(self.clock() - started)
        seconds = self._with_host(
            {
                part: plausible({count: times[count] for count in counts})
                for part, times in stopwatch.best.items()
            }
        )
        fastest = sorted(rounds)[:2]
        return seconds, len(fastest) == 2 and fastest[1] < _QUIET * fastest[0]

    def is_outdone(self, seconds: Seconds) -> bool:
        """Whether a plain step of one token is clearly faster than the measurements say."""
        stopwatch, started = _Stopwatch(self.clock, self.ops), self.clock()
        said_s = sum(seconds[part][1] for part in self._plain_parts)
        for _ in range(_ROUNDS):
            if self.rows is None:
                self._time_plain(1, stopwatch)
            else:
                stopwatch.time("step", 1, self.rows.plain_step(1))
            if _FASTER * sum(times[1] for times in stopwatch.best.values()) < said_s:
                return True
            if self.clock() - started > _LONGEST_CHECK_S:
                break
        return False

    @property
    def parts(self) -> list[str]:
        """The names of the parts that are timed."""
        num_heads = len(self.heads.heads) if self.heads else 0
        return [*self._plain_parts, *(f"head {index}" for index in range(num_heads))]

    @property
    def measured(self) -> list[str]:
        """The names that a complete measurement has."""
        return self.parts if self.rows is None else [*self.parts, _STEADY]

    @property
    def _plain_parts(self) -> list[str]:
        return [*(f"segment {index}" for index in range(self.num_segments)), "logits"]

    def _time(self, count: int, stopwatch: "_Stopwatch") -> None:
        hidden = self._time_plain(count, stopwatch)
        if self.heads is not None:
            none = torch.zeros(count, dtype=torch.int64, device=self.ops.device)
            ones = torch.ones(count, device=self.ops.device)
            ids = SaltedIds.of(self.heads.token_ids)
            for index, head in enumerate(self.heads.heads):
                call = partial(_evaluate_head, self.ops, head, hidden, ids, none, ones)
                stopwatch.time(f"head {index}", count, call)
        if self.rows is not None:
            stopwatch.time("step", count, self.rows.plain_step(count))
            for step in self.rows.plain_steps(count):
                stopwatch.time(_STEADY, count, step)
            if self.heads is not None:
                stopwatch.time("drafting step", count, self.rows.drafting_step(count))

    def _with_host(self, seconds: Seconds) -> Seconds:
        """Return the times with what whole steps take beside their parts.

        That time is added where the step waits for the device: evaluations of exits and the end.
        """
        if self.rows is None:
            return seconds
        segments = [seconds[f"segment {index}"] for index in range(self.num_segments)]
        plain = seconds.pop("step")
        for count, whole in plain.items():
            rest = whole - sum(times[count] for times in segments)
            seconds["logits"][count] = max(rest, seconds["logits"][count])
        num_heads = len(self.heads.heads) if self.heads else 0
        without = CostCurve.of(plain)
        for count, whole in seconds.pop("drafting step", {}).items():
            pending = self.rows.num_pending[count]
            num_evaluations = num_heads + (pending > count)
            evaluation = (whole - without(pending)) / num_evaluations
            for index in range(num_heads):
                head = seconds[f"head {index}"]
                head[count] = max(evaluation, head[count])
        return seconds

    def _time_plain(self, count: int, stopwatch: "_Stopwatch") -> Tensor:
        """Time the parts of a plain step; return the embedded tokens."""
        batch = _dummy_batch(count, self.block_size, self.ops.device)
        hidden = self.runner.embed(batch.positions)
        for index in range(self.num_segments):
            call = partial(self.runner.run, index, hidden, batch)
            stopwatch.time(f"segment {index}", count, call)
        stopwatch.time("logits", count, partial(self.runner.logits, hidden))
        return hidden


def cost_model(profiler: Profiler, directory: Path, facts: Mapping[str, str]) -> CostModel:
    """Return what the parts of a step cost, as measured on an earlier start or now.

    Args:
        directory: Where measurements are kept.
        facts: Everything that costs depend on; a measurement made with other facts is not used.
    """
    key = hashlib.sha256(json.dumps(sorted(facts.items())).encode()).hexdigest()[:32]
    path = directory / f"costs-{key}.json"
    seconds = _read(path, profiler)
    if seconds is None or profiler.is_outdone(seconds):
        seconds, is_quiet = profiler.measure()
        if is_quiet:
            _write(path, seconds)
    heads = range(len(profiler.heads.heads) if profiler.heads else 0)
    return CostModel(
        [CostCurve.of(seconds[f"segment {index}"]) for index in range(profiler.num_segments)],
        [CostCurve.of(seconds[f"head {index}"]) for index in heads],
        CostCurve.of(seconds["logits"]),
        CostCurve.of(seconds[_STEADY]) if _STEADY in seconds else None,
        is_fixed=False,
    )


def plausible(times: Mapping[int, float]) -> dict[int, float]:
    """Return the times without what only a disturbance can have added.

    Tokens never cost more than a larger number of tokens, nor more than several calls with fewer.
    """
    counts = sorted(times)
    kept, least = dict(times), inf
    for count in reversed(counts):
        least = kept[count] = min(kept[count], least)
    for fewer, count in pairwise(counts):
        kept[count] = min(kept[count], ceil(count / fewer) * kept[fewer])
    return kept


@dataclass(slots=True)
class _Stopwatch:
    """Keeps the shortest time of every part."""

    clock: Callable[[], float]
    ops: Ops
    best: Seconds = field(default_factory=dict)

    def time(self, part: str, count: int, call: Callable[[], object]) -> None:
        """Time a call, and keep the time if it is the shortest."""
        started = self.clock()
        result = call()
        if isinstance(result, Tensor):  # a device may not have computed it yet
            self.ops.fetch(result.flatten()[:1])()
        elapsed = self.clock() - started
        times = self.best.setdefault(part, {})
        times[count] = min(elapsed, times.get(count, elapsed))


def _read(path: Path, profiler: Profiler) -> Seconds | None:
    """Return the measurement of an earlier start; None if there is none that is fresh and whole."""
    try:
        if time.time() - path.stat().st_mtime > _STALE_S:
            return None
        raw = json.loads(path.read_text(encoding="utf-8"))
        seconds = {
            part: {int(count): float(value) for count, value in times.items()}
            for part, times in raw.items()
        }
    except (OSError, ValueError, AttributeError, TypeError):
        return None
    return seconds if all(1 in seconds.get(part, {}) for part in profiler.measured) else None


def _write(path: Path, seconds: Seconds) -> None:
    """Write a measurement, whole or not at all; without it the next start takes a second more."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.tmp")
        fresh.write_text(json.dumps(seconds, indent=1), encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        logger.warning("measured costs cannot be kept in %s: %s", path.parent, error)


def _evaluate_head(
    ops: Ops, head: Head, hidden: Tensor, ids: SaltedIds, none: Tensor, temperatures: Tensor
) -> Tensor:
    """Evaluate a head and what it expects, as a step does.

    Args:
        none: [T] int64 zeros, used as noise keys and as columns of drafts that follow.
    """
    _, logits, other = head(hidden, hidden, [1] * len(hidden))
    return ops.expect(logits, other, temperatures, none, ids, none)


def _dummy_batch(count: int, block_size: int, device: torch.device) -> TokenBatch:
    """Return `count` tokens, each alone in its row at the first position of block 0."""
    zeros = torch.zeros(count, dtype=torch.int32, device=device)
    return TokenBatch(
        positions=zeros,
        slots=zeros,
        rows=torch.arange(count, dtype=torch.int32, device=device),
        block_tables=torch.zeros((count, 1), dtype=torch.int32, device=device),
        block_size=block_size,
    )
