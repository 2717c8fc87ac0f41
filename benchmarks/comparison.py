"""Figures by task from single runs: speed, ratios, acceptance, and whether outputs agree.

Pure arithmetic without torch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce

from engine.request import DraftFigures

PLAIN, EARLY_EXIT, TRANSFORMERS = "plain", "early-exit", "transformers"
MODES = (PLAIN, EARLY_EXIT, TRANSFORMERS)
ALL_TASKS = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The run of one mode on one group of prompts."""

    mode: str
    concurrency: int  # the most that ran at once; a last group may be smaller
    prompt_indices: tuple[int, ...]
    tasks: tuple[str, ...]  # of those prompts
    token_ids: tuple[tuple[int, ...], ...]
    duration_s: float
    first_token_s: float
    figures: tuple[DraftFigures, ...] = ()

    @property
    def num_tokens(self) -> int:
        """The number of output tokens of all prompts."""
        return sum(len(ids) for ids in self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftTotals:
    """The draft figures of many requests, added up."""

    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    accepted_by_layer: Counter[int] = field(default_factory=Counter)

    def add(self, figures: DraftFigures) -> "DraftTotals":
        """Return these totals with one request's figures added."""
        return DraftTotals(
            num_steps=self.num_steps + figures.num_steps,
            num_draft_tokens=self.num_draft_tokens + figures.num_draft_tokens,
            num_accepted_tokens=self.num_accepted_tokens + figures.num_accepted_tokens,
            accepted_by_layer=self.accepted_by_layer + Counter(figures.accepted_by_layer),
        )

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted / drafted tokens; None when nothing was drafted."""
        return self.num_accepted_tokens / self.num_draft_tokens if self.num_draft_tokens else None

    @property
    def mean_acceptance_length(self) -> float | None:
        """1 + accepted / steps that drafted; None when nothing was drafted."""
        return 1 + self.num_accepted_tokens / self.num_steps if self.num_steps else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeFigures:
    """The figures of one mode on one task."""

    num_prompts: int
    num_tokens: int
    duration_s: float
    first_token_s: float  # mean over runs
    drafts: DraftTotals

    @property
    def tokens_per_s(self) -> float:
        """Output tokens per second, prefill included."""
        return self.num_tokens / self.duration_s if self.duration_s else 0.0

    @property
    def committed_per_step(self) -> float:
        """Output tokens per row and step; each step commits one token besides accepted drafts."""
        return self.num_tokens / self._num_steps

    @property
    def verified_per_step(self) -> float:
        """Tokens per row and step that reach the last layer: the newest known one, and drafts."""
        return 1 + self.drafts.num_draft_tokens / self._num_steps

    @property
    def _num_steps(self) -> int:
        return self.num_tokens - self.drafts.num_accepted_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskComparison:
    """The figures of all modes on one task at one concurrency."""

    task: str
    concurrency: int
    modes: dict[str, ModeFigures]

    def ratio(self, mode: str, baseline: str) -> float | None:
        """Return how many times as fast as `baseline` a mode is; None unless both ran."""
        if mode not in self.modes or baseline not in self.modes:
            return None
        return self.modes[mode].tokens_per_s / self.modes[baseline].tokens_per_s

    @property
    def drafts(self) -> DraftTotals:
        """The draft totals of the early-exit mode."""
        return self.modes[EARLY_EXIT].drafts if EARLY_EXIT in self.modes else DraftTotals()

    def exit_share(self, layer: int) -> float:
        """Return the share of the early-exit mode's tokens that exited at a layer."""
        return self.drafts.accepted_by_layer[layer] / self.modes[EARLY_EXIT].num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How many outputs of a mode equal the reference's, token for token."""

    mode: str
    reference: str
    num_equal: int
    num_compared: int
    different: tuple[int, ...]  # indices of the prompts whose outputs differ

    @property
    def is_complete(self) -> bool:
        """Whether no output differs."""
        return self.num_equal == self.num_compared


def compare(runs: Sequence[Run]) -> list[TaskComparison]:
    """Compare modes by concurrency, then by task, with all tasks together last.

    There are no figures by task if prompts of several tasks ran at once.
    """
    comparisons = []
    for concurrency in sorted({run.concurrency for run in runs}):
        chosen = [run for run in runs if run.concurrency == concurrency]
        is_mixed = any(len(set(run.tasks)) > 1 for run in chosen)
        tasks = {} if is_mixed else dict.fromkeys(run.tasks[0] for run in chosen)
        for task in tasks:
            of_task = [run for run in chosen if run.tasks[0] == task]
            comparisons.append(_compare_task(task, concurrency, of_task))
        if len(tasks) != 1:
            comparisons.append(_compare_task(ALL_TASKS, concurrency, chosen))
    return comparisons


def mean_of_tasks(
    comparisons: Sequence[TaskComparison], mode: str, baseline: str, concurrency: int
) -> float | None:
    """Return the mean over tasks of how many times as fast as `baseline` a mode is.

    Every task counts alike. None if tasks have no figures of their own, or a mode has none.
    """
    ratios = [
        entry.ratio(mode, baseline)
        for entry in comparisons
        if entry.concurrency == concurrency and entry.task != ALL_TASKS
    ]
    known = [ratio for ratio in ratios if ratio is not None]
    return sum(known) / len(known) if known else None


def mean_ratio(runs: Sequence[Run], mode: str, baseline: str, concurrency: int) -> float | None:
    """Return the mean over prompts (or groups) of how many times as fast as `baseline` a mode is.

    Every prompt counts alike, however long it takes. None unless both modes ran.
    """
    durations: dict[str, dict[tuple[int, ...], float]] = {mode: {}, baseline: {}}
    for run in runs:
        if run.concurrency == concurrency and run.mode in durations:
            durations[run.mode][run.prompt_indices] = run.duration_s
    common = durations[mode].keys() & durations[baseline].keys()
    if not common:
        return None
    return sum(durations[baseline][key] / durations[mode][key] for key in common) / len(common)


def check_agreement(runs: Sequence[Run]) -> list[Agreement]:
    """Compare the outputs of every mode with plain decoding at the lowest concurrency.

    Plain decoding at a higher concurrency is compared as well: a batch must not change a token.
    """
    reference: dict[int, tuple[int, ...]] = {}
    for run in sorted(runs, key=lambda run: run.concurrency):
        if run.mode == PLAIN:
            for index, token_ids in zip(run.prompt_indices, run.token_ids, strict=True):
                reference.setdefault(index, token_ids)
    present = dict.fromkeys(run.mode for run in runs)
    return [_agreement(mode, runs, reference) for mode in present] if reference else []


def _agreement(mode: str, runs: Sequence[Run], reference: dict[int, tuple[int, ...]]) -> Agreement:
    outputs = [
        (index, token_ids)
        for run in runs
        if run.mode == mode
        for index, token_ids in zip(run.prompt_indices, run.token_ids, strict=True)
    ]
    different = [index for index, token_ids in outputs if token_ids != reference[index]]
    return Agreement(
        mode=mode,
        reference=PLAIN,
        num_equal=len(outputs) - len(different),
        num_compared=len(outputs),
        different=tuple(sorted(set(different))),
    )


def _compare_task(task: str, concurrency: int, runs: Sequence[Run]) -> TaskComparison:
    modes = {
        mode: _sum_up([run for run in runs if run.mode == mode])
        for mode in dict.fromkeys(run.mode for run in runs)
    }
    return TaskComparison(task=task, concurrency=concurrency, modes=modes)


def _sum_up(runs: Sequence[Run]) -> ModeFigures:
    figures = [one for run in runs for one in run.figures]
    return ModeFigures(
        num_prompts=sum(len(run.prompt_indices) for run in runs),
        num_tokens=sum(run.num_tokens for run in runs),
        duration_s=sum(run.duration_s for run in runs),
        first_token_s=sum(run.first_token_s for run in runs) / len(runs),
        drafts=reduce(DraftTotals.add, figures, DraftTotals()),
    )
