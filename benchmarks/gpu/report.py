"""Figures as they come, a table of all at the end, and a JSON file that is whole after every one.

A part that fails or takes too long loses only what it has not measured yet. The file also says
which part is running and until when, so that who watches this process knows when it hangs, and
another process can go on where it ended.
"""

import faulthandler
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from training.json_file import write_json

_AGAIN_S = 5.0
_STDERR = 2  # the process's own, whatever Python's is replaced by


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing measured, and whether it is what was hoped for."""

    part: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""  # as the table shows it
    is_met: bool | None = None  # None: nothing was aimed at
    at: dict[str, float] = field(default_factory=dict)  # where on a curve it lies

    @property
    def shown(self) -> str:
        """The value for people."""
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:.4g}" if abs(self.value) < 1000 else f"{self.value:,.0f}"


class OutOfTime(BaseException):
    """A part has used up its time. No `Exception`: what a part calls may catch those."""


@dataclass(slots=True)
class Report:
    """Everything found out so far."""

    facts: dict[str, str]
    file: Path | None
    deadline: float  # of all parts, by `time.time`
    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # part -> traceback
    durations_s: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[float, float]] = field(default_factory=dict)  # part -> from, until

    @classmethod
    def read(cls, file: Path, deadline: float) -> "Report":
        """What a process has written; an empty report if it wrote nothing."""
        if not file.is_file():
            return cls({}, file, deadline)
        content = json.loads(file.read_text())
        figures = [Figure(**figure) for figure in content.pop("figures")]
        return cls(file=file, deadline=deadline, figures=figures, **content)

    def run(
        self,
        part: str,
        budget_s: float,
        measure: Callable[["Part"], None],
        *,
        kept_s: float = 0.0,
    ) -> BaseException | None:
        """Run a part within its budget and what is left of the whole; returns what ended it early.

        Args:
            kept_s: Of what is left, to be kept for the parts to come.
        """
        budget_s = min(budget_s, self.deadline - time.time() - kept_s)
        print(f"\n== {part} (at most {max(0, budget_s):.0f} s)", flush=True)
        began = time.time()
        self.running = {part: (began, began + budget_s)}
        self.write()
        error: BaseException | None = None
        try:
            if budget_s < 1:
                raise OutOfTime("no time was left for it")
            with _alarm(budget_s):
                measure(Part(self, part))
        except (Exception, OutOfTime) as caught:
            self.fail(part, traceback.format_exc())
            error = caught.with_traceback(None)  # which holds what the part had on the device
        self.durations_s[part] = time.time() - began
        self.running = {}
        self.write()
        return error

    def fail(self, part: str, text: str) -> None:
        """Remember why a part has not all its figures."""
        self.failures[part] = text
        print(f"FAILED: {text.strip().splitlines()[-1]}", flush=True)

    def write(self) -> None:
        """Write the JSON file, whole at any moment."""
        if self.file is None:
            return
        content = {
            "facts": self.facts,
            "figures": [asdict(figure) for figure in self.figures],
            "failures": self.failures,
            "durations_s": self.durations_s,
            "running": self.running,
        }
        write_json(self.file, content)

    def print_table(self) -> None:
        """Failures with their tracebacks, then every figure."""
        for part, text in self.failures.items():
            print(f"\n-- {part} failed\n{text}")
        print()
        for name, fact in self.facts.items():
            print(f"{name:<12} {fact}")
        verdicts = {None: "", True: "met", False: "MISSED"}
        for figure in self.figures:
            print(
                f"{figure.part:<12} {figure.name:<54} {figure.shown:>10} {figure.unit:<7} "
                f"{figure.target:<12} {verdicts[figure.is_met]}".rstrip()
            )
        for part in self.failures:
            print(f"{part:<12} FAILED, see above")
        print(f"took {sum(self.durations_s.values()):.0f} s", flush=True)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part puts its figures."""

    report: Report
    name: str

    @property
    def left_s(self) -> float:
        """Seconds until it is ended."""
        _, until = self.report.running.get(self.name, (0.0, self.report.deadline))
        return until - time.time()

    def add(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        least: float | None = None,
        is_met: bool | None = None,
        at: dict[str, float] | None = None,
    ) -> None:
        """Add a figure; with `least`, one that should not be smaller; `at`: see `Figure`."""
        if least is not None and not isinstance(value, str):
            is_met = value >= least
        target = "" if least is None else f">= {least:g}"
        figure = Figure(
            part=self.name,
            name=name,
            value=value,
            unit=unit,
            target=target,
            is_met=is_met,
            at=at or {},
        )
        self.report.figures.append(figure)
        self.report.write()
        print(f"  {name}: {figure.shown} {unit} {target}".rstrip(), flush=True)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in this (the main) thread once the time is over, and again if that was
    swallowed.
    """

    def ring(signum: int, frame: FrameType | None) -> Any:
        raise OutOfTime(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    # A call that never returns to Python is ended from outside: where it hung is said before.
    faulthandler.dump_traceback_later(seconds + _AGAIN_S, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
