"""Prints figures as they come and a table of all at the end, and keeps a JSON file up to date.

A part that fails or takes too long loses only what it has not measured yet. The file also names the
part that is running and until when it may, so that a process that watches this one knows when it
hangs, and another one can go on where it ended.
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
_STDERR = 2  # the process's file descriptor, even if sys.stderr is replaced


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured figure, and whether it meets its target."""

    part: str
    name: str
    value: float | str
    unit: str = ""
    target: str = ""  # as the table shows it
    is_met: bool | None = None  # None: there is no target
    at: dict[str, float] = field(default_factory=dict)  # its coordinates on a curve

    @property
    def shown(self) -> str:
        """The value as text."""
        if isinstance(self.value, str):
            return self.value
        return f"{self.value:.4g}" if abs(self.value) < 1000 else f"{self.value:,.0f}"


class OutOfTime(BaseException):
    """A part has used up its time.

    It is not an `Exception`, which code that a part calls may catch.
    """


@dataclass(slots=True)
class Report:
    """All figures and failures so far."""

    facts: dict[str, str]
    file: Path | None
    deadline: float  # when all parts must be over, by `time.time`
    figures: list[Figure] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # part -> traceback
    durations_s: dict[str, float] = field(default_factory=dict)
    running: dict[str, tuple[float, float]] = field(default_factory=dict)  # part -> from, until

    @classmethod
    def read(cls, file: Path, deadline: float) -> "Report":
        """Read the report that a process has written; it is empty if there is no file."""
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
        """Run a part within its budget and the time left; return the error that ended it, or None.

        Args:
            kept_s: Seconds of the time left that are reserved for later parts.
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
            error = caught.with_traceback(None)  # a traceback would keep the part's tensors alive
        self.durations_s[part] = time.time() - began
        self.running = {}
        self.write()
        return error

    def fail(self, part: str, text: str) -> None:
        """Record why a part does not have all its figures."""
        self.failures[part] = text
        print(f"FAILED: {text.strip().splitlines()[-1]}", flush=True)

    def write(self) -> None:
        """Write the JSON file, atomically."""
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
        """Print failures with their tracebacks, then every figure."""
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
    """A part's access to the report."""

    report: Report
    name: str

    @property
    def left_s(self) -> float:
        """Seconds that are left for the part."""
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
        """Add a figure.

        Args:
            least: Target that the value should reach; it decides `is_met`.
            is_met: See `Figure`.
            at: See `Figure`.
        """
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
    """Raise `OutOfTime` in the main thread once the time is over, and again if it is swallowed."""

    def ring(signum: int, frame: FrameType | None) -> Any:
        raise OutOfTime(f"it took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_S)
    # A call that never returns to Python is killed from outside; show before where it hangs.
    faulthandler.dump_traceback_later(seconds + _AGAIN_S, file=_STDERR)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
