"""Figures as they come, a table of all at the end, and a JSON file that is whole after every part.

A part that fails or takes too long loses its own figures only.
"""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One thing measured, and whether it is what was hoped for."""

    part: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""  # as the table shows it
    is_met: bool | None = None  # None: nothing was aimed at

    @property
    def shown(self) -> str:
        """The value for people."""
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:.4g}" if abs(self.value) < 1000 else f"{self.value:,.0f}"


class OutOfTime(Exception):
    """A part has used up its time."""


@dataclass(slots=True)
class Report:
    """Everything found out so far."""

    facts: dict[str, str]
    file: Path | None
    time_limit_s: float
    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # part -> traceback
    durations_s: dict[str, float] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def run(self, part: str, budget_s: float, measure: Callable[["Part"], None]) -> None:
        """Run a part within its budget and what is left of the whole."""
        left = self.time_limit_s - (time.perf_counter() - self.started)
        budget_s = min(budget_s, left)
        print(f"\n== {part} (at most {max(0, budget_s):.0f} s)", flush=True)
        began = time.perf_counter()
        try:
            if budget_s < 1:
                raise OutOfTime("no time was left for it")
            with _alarm(budget_s):
                measure(Part(self, part))
        except Exception:
            self.failures[part] = traceback.format_exc()
            print(f"FAILED: {self.failures[part].splitlines()[-1]}", flush=True)
        self.durations_s[part] = time.perf_counter() - began
        self.write()

    def write(self) -> None:
        """Write the JSON file."""
        if self.file is not None:
            figures = [asdict(figure) for figure in self.figures]
            content = {
                "facts": self.facts,
                "figures": figures,
                "failures": self.failures,
                "durations_s": self.durations_s,
            }
            self.file.write_text(json.dumps(content, indent=1) + "\n")

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
        print(f"took {time.perf_counter() - self.started:.0f} s", flush=True)


@dataclass(frozen=True, slots=True)
class Part:
    """Where a part puts its figures."""

    report: Report
    name: str

    def add(
        self,
        name: str,
        value: float | str,
        unit: str = "",
        *,
        least: float | None = None,
        is_met: bool | None = None,
    ) -> None:
        """Add a figure; with `least`, one that should not be smaller."""
        if least is not None and not isinstance(value, str):
            is_met = value >= least
        target = "" if least is None else f">= {least:g}"
        figure = Figure(
            part=self.name, name=name, value=value, unit=unit, target=target, is_met=is_met
        )
        self.report.figures.append(figure)
        print(f"  {name}: {figure.shown} {unit} {target}".rstrip(), flush=True)


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in this (the main) thread once the time is over."""

    def ring(signum: int, frame: FrameType | None) -> Any:
        raise OutOfTime(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
