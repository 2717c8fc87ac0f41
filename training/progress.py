"""Progress of long work: bars in a terminal, plain lines every few seconds otherwise."""

import sys
import time
from typing import Self

from tqdm import tqdm

_LINE_EVERY_S = 10.0


class ProgressReport:
    """One named stage with a known amount of work."""

    def __init__(self, name: str, total: int, unit: str) -> None:
        self._name, self.total, self._unit = name, total, unit
        self._bar = tqdm(total=total, desc=name, unit=unit) if sys.stderr.isatty() else None
        self._started = self._last_line = time.monotonic()
        self._first: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Set the amount done so far."""
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.n = done
            self._bar.set_postfix_str(note)
            return
        if self._first is None:
            self._first = done
        now = time.monotonic()
        if now - self._last_line >= _LINE_EVERY_S or done >= self.total:
            self._last_line = now
            rate = (done - self._first) / max(1e-9, now - self._started)
            line = f"{self._name}: {done}/{self.total} {self._unit} ({rate:.1f}/s) {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
