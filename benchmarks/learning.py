"""`adadecode bench learn`: what heads that learn while serving gain when the traffic changes.

A few familiar prompts and then a stream of a domain that the shipped heads were not trained on are
served with learning off and on, in turns from prompt to prompt. The times include learning; with
the modelled clock, where steps have fixed costs, learning adds its CPU time. Acceptance and speed
are printed by window, and the exit status is 1 if learning changed an output.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from benchmarks.comparison import Run
from benchmarks.contest import Contest, Contestant
from benchmarks.contestants import EngineContestant
from benchmarks.domains import domain_prompts
from benchmarks.engines import make_engines
from benchmarks.machine import describe_machine, print_facts
from benchmarks.markdown import format_table
from benchmarks.model_flags import required_heads
from benchmarks.plots import plot_curves, require_matplotlib
from benchmarks.prompts import choose_prompts, encode_prompts
from engine.checkpoint import resolve_model
from engine.config import ExitsConfig
from engine.offline import OfflineEngine
from engine.plan import Learning, StepPlan, StepResult
from engine.request import LOOKED_UP, EarlyExitOptions, Structure
from engine.stats import EngineStats
from engine.worker.worker import ModelWorker
from training.engines import TimedEngine
from training.prompts import Prompt

OFF, ON = "learning off", "learning on"
_HEADER = [
    "window",
    "of",
    f"{OFF}: heads' drafts accepted",
    "of 100 tokens",
    "tok/s",
    f"{ON}: heads' drafts accepted",
    "of 100 tokens",
    "tok/s",
    "on / off",
]


class CountingWorker:
    """A worker that counts what its heads have learned."""

    def __init__(self, worker: ModelWorker) -> None:
        self.info = worker.info
        self._worker = worker
        self._stats = EngineStats()

    @property
    def learning(self) -> Learning:
        """The totals of learning so far, and its latest trial."""
        return self._stats.learning

    @property
    def time_s(self) -> float:
        """The seconds that all steps took."""
        return self._stats.worker_time_s_total

    def execute(self, plan: StepPlan) -> StepResult:
        """See `SynchronousWorker.execute`."""
        result = self._worker.execute(plan)
        self._stats.count_step(plan, result, result.rows)
        return result

    def prepare(self, structure: Structure) -> None:
        """See `SynchronousWorker.prepare`."""
        self._worker.prepare(structure)

    def close(self) -> None:
        """See `ModelWorker.close`."""
        self._worker.close()

    def rest(self, *, is_idle: bool) -> bool:
        """See `SynchronousWorker.rest`."""
        return self._worker.rest(is_idle=is_idle)


@dataclass(frozen=True, slots=True)
class Window:
    """The figures of consecutive prompts of one kind, served in one mode."""

    num_drafted: int  # tokens drafted by heads
    num_accepted: int  # accepted tokens among those
    num_tokens: int
    duration_s: float

    @property
    def acceptance(self) -> float:
        """The acceptance rate of the heads' drafts."""
        return self.num_accepted / max(self.num_drafted, 1)

    @property
    def gain(self) -> float:
        """Accepted tokens from heads per 100 output tokens."""
        return 100 * self.num_accepted / self.num_tokens

    @property
    def speed(self) -> float:
        """Output tokens per second, prefill included."""
        return self.num_tokens / self.duration_s


def window_of(runs: Sequence[Run]) -> Window:
    """Add up the runs of a window in one mode."""
    figures = [figure for run in runs for figure in run.figures]
    return Window(
        num_drafted=sum(
            n for f in figures for layer, n in f.drafted_by_layer.items() if layer != LOOKED_UP
        ),
        num_accepted=sum(
            n for f in figures for layer, n in f.accepted_by_layer.items() if layer != LOOKED_UP
        ),
        num_tokens=sum(len(ids) for run in runs for ids in run.token_ids),
        duration_s=sum(run.duration_s for run in runs),
    )


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when the options do not fit together.
        EngineError: when the model cannot be loaded.
    """
    if args.plot:
        require_matplotlib()
    directory = resolve_model(args.model)
    heads = required_heads(args, directory)
    entries = encode_prompts(_prompts(args), directory)
    facts = {"model": args.model, "share": f"{args.share:g} of the worker's time"}
    engines = make_engines(args, directory, entries, (1,), are_several=True, prefix_caching=False)
    with tempfile.TemporaryDirectory() as scratch:
        exits = ExitsConfig(heads=heads, lookup=not args.no_lookup_drafts)
        learning = replace(exits, learn=True, learn_share=args.share, learn_directory=Path(scratch))
        workers: dict[str, CountingWorker] = {}
        contestants: dict[str, Contestant] = {}
        for mode, config in ((OFF, exits), (ON, learning)):
            worker, clock = engines.worker(config)
            workers[mode] = CountingWorker(worker)
            timed = TimedEngine(OfflineEngine(engines.config, workers[mode]), clock)
            contestants[mode] = EngineContestant.asked(args, timed, EarlyExitOptions())
        print_facts(describe_machine() | facts | engines.settings)
        runs = Contest(contestants=contestants, entries=entries, concurrencies=(1,)).measure()
        workers[ON].close()
    rows, curves = _windows(runs, args.window)
    print(format_table(_HEADER, rows))
    print(_summary(workers[ON]))
    if args.plot:
        title = f"{args.model}: {args.familiar} familiar prompts, then {_domain(args)}"
        labels = ("prompts", "heads' accepted drafts of 100 tokens")
        plot_curves(curves, args.plot, title, labels, level=None)
    changed = _num_changed(runs)
    print(f"outputs changed by learning: {changed} of {len(entries)}")
    return int(changed > 0)


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    familiar = choose_prompts(None, None)[: args.familiar]
    if args.prompts is not None:
        return [*familiar, *choose_prompts(args.prompts, None)[: args.num_prompts]]
    return [*familiar, *domain_prompts(args.domain, args.num_prompts)]


def _domain(args: argparse.Namespace) -> str:
    return str(args.domain if args.prompts is None else args.prompts.name)


def _windows(
    runs: Sequence[Run], size: int
) -> tuple[list[list[str]], dict[str, list[tuple[float, float]]]]:
    """Return the rows of the table, one per window, and a curve for each mode."""
    rows: list[list[str]] = []
    curves: dict[str, list[tuple[float, float]]] = {OFF: [], ON: []}
    done = 0
    for kind, indices in _split(runs, size):
        done += len(indices)
        windows = {
            mode: window_of([r for r in runs if r.mode == mode and r.prompt_indices[0] in indices])
            for mode in (OFF, ON)
        }
        cells = [f"{done - len(indices) + 1}-{done}", kind]
        for mode, window in windows.items():
            curves[mode].append((float(done), window.gain))
            cells += [f"{window.acceptance:.0%}", f"{window.gain:.1f}", f"{window.speed:.1f}"]
        rows.append([*cells, f"{windows[ON].speed / windows[OFF].speed:.2f}"])
    return rows, curves


def _split(runs: Sequence[Run], size: int) -> list[tuple[str, set[int]]]:
    """Split prompts into windows of one kind, in order; return kinds and prompt indices."""
    kinds = {run.prompt_indices[0]: run.tasks[0] for run in runs}
    last = kinds[max(kinds)]
    parts: list[tuple[str, set[int]]] = []
    for is_strange, name in ((False, "familiar"), (True, last)):
        mine = iter(sorted(i for i, kind in kinds.items() if (kind == last) == is_strange))
        while window := set(islice(mine, size)):
            parts.append((name, window))
    return parts


def _num_changed(runs: Sequence[Run]) -> int:
    outputs = {
        mode: {run.prompt_indices: run.token_ids for run in runs if run.mode == mode}
        for mode in (OFF, ON)
    }
    return sum(outputs[ON][key] != ids for key, ids in outputs[OFF].items())


def _summary(worker: CountingWorker) -> str:
    learning = worker.learning
    share = learning.seconds / (learning.seconds + worker.time_s)
    return (
        f"learned: {learning.num_updates} updates in {learning.seconds:.1f} s ({share:.1%} of the "
        f"worker's time), {learning.num_adopted} times new weights, {learning.num_dropped} "
        f"dropped; latest trial: serving {learning.serving_agreement:.3f}, shipped "
        f"{learning.shipped_agreement:.3f}"
    )
