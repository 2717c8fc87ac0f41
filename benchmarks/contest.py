"""Runs the prompts through every contestant in turns.

The order of the modes changes from prompt to prompt, so that whatever else the machine does affects
all of them alike.
"""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from benchmarks.comparison import TRANSFORMERS, Run
from engine.request import DraftFigures
from training.progress import ProgressReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outputs and times of one run over some prompts."""

    token_ids: tuple[tuple[int, ...], ...]  # output per prompt
    duration_s: float  # prefill included
    first_token_s: float  # until any prompt has its first token
    figures: tuple[DraftFigures, ...] = ()  # per prompt; empty if the contestant cannot draft


GroupBy = Literal["task", "order"]


class Contestant(Protocol):
    """One way to generate."""

    def run(
        self,
        prompts: Sequence[tuple[int, ...]],
        seeds: Sequence[int],
        at_once: int | None = None,
    ) -> Outcome:
        """Generate for all prompts, `at_once` of them at a time; None: all at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A prompt of the benchmark."""

    index: int
    task: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """A benchmark's contestants, its prompts, and how many of these run at once.

    Attributes:
        contestants: Contestants by the name of their mode.
        group_by: "task": prompts that run at once are of one task, so that every task has figures
            of its own; "order": prompts run as they come; None: by task if every task has enough
            prompts.
        continuous: Begin the next prompt of a task (or of all) when one ends, as in a server under
            load. Otherwise a group runs to its end before the next begins, so that its last prompts
            run with few others.
    """

    contestants: dict[str, Contestant]
    entries: tuple[Entry, ...]
    concurrencies: tuple[int, ...]
    group_by: GroupBy | None = None
    continuous: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: if groups are to be of one task and a task has too few prompts.
        """
        if self.group_by == "task":
            for task, entries in self._tasks.items():
                if len(entries) < max(self.concurrencies):
                    raise ValueError(
                        f"--group-by task: {len(entries)} prompts of task {task!r} are fewer than "
                        f"{max(self.concurrencies)} at once"
                    )

    @classmethod
    def asked(
        cls, args: Namespace, contestants: dict[str, Contestant], entries: tuple[Entry, ...]
    ) -> "Contest":
        """Make a contest with the concurrencies and groups of the parsed flags.

        Raises:
            ValueError: if groups are to be of one task and a task has too few prompts.
        """
        return cls(
            contestants=contestants,
            entries=entries,
            concurrencies=args.concurrency,
            group_by=args.group_by,
            continuous=args.continuous,
        )

    def groups(self) -> Iterator[tuple[int, tuple[Entry, ...], list[str]]]:
        """Yield concurrency, prompts and modes in order; transformers runs single prompts only."""
        for concurrency in self.concurrencies:
            modes = [m for m in self.contestants if concurrency == 1 or m != TRANSFORMERS]
            for number, group in enumerate(self._groups_of(concurrency)):
                turn = number % len(modes)
                yield concurrency, group, modes[turn:] + modes[:turn]

    def measure(self) -> list[Run]:
        """Run everything once, after an uncounted run of each mode."""
        for contestant in self.contestants.values():
            contestant.run([self.entries[0].token_ids], [0])
        schedule = list(self.groups())
        runs: list[Run] = []
        with ProgressReport("contest", sum(len(modes) for *_, modes in schedule), "runs") as report:
            for concurrency, group, modes in schedule:
                for mode in modes:
                    runs.append(_run(mode, self.contestants[mode], concurrency, group))
                    report.update(len(runs))
        return runs

    def _groups_of(self, concurrency: int) -> list[tuple[Entry, ...]]:
        tasks = self._tasks.values()
        has_enough = all(len(entries) >= concurrency for entries in tasks)
        is_mixed = concurrency == 1 or self.group_by == "order" or not has_enough
        size = len(self.entries) if self.continuous and concurrency > 1 else concurrency
        parts = [self.entries] if is_mixed else tasks
        return [group for entries in parts for group in _cut(entries, size)]

    @property
    def _tasks(self) -> dict[str, list[Entry]]:
        tasks: dict[str, list[Entry]] = {}
        for entry in self.entries:
            tasks.setdefault(entry.task, []).append(entry)
        return tasks


def _cut(entries: Sequence[Entry], size: int) -> list[tuple[Entry, ...]]:
    """Split entries into groups of `size`; the last may be smaller."""
    return [tuple(entries[start : start + size]) for start in range(0, len(entries), size)]


def _run(mode: str, contestant: Contestant, concurrency: int, group: Sequence[Entry]) -> Run:
    indices = tuple(entry.index for entry in group)
    outcome = contestant.run([entry.token_ids for entry in group], indices, concurrency)
    return Run(
        mode=mode,
        concurrency=concurrency,
        prompt_indices=indices,
        tasks=tuple(entry.task for entry in group),
        token_ids=outcome.token_ids,
        duration_s=outcome.duration_s,
        first_token_s=outcome.first_token_s,
        figures=outcome.figures,
    )
