"""Shows the progress of long work: a bar in a terminal, otherwise a line every few seconds."""

import sys
import time
from typing import Self

from tqdm import tqdm

_LINE_EVERY_S = 10.0


class ProgressReport:
    """The progress of one named stage with a known amount of work."""

    def __init__(self, name: str, total: int, unit: str, *, is_silent: bool = False) -> None:
        self._name, self.total, self._unit = name, total, unit
        self._is_silent = is_silent
        has_bar = sys.stderr.isatty() and not is_silent
        self._bar = tqdm(total=total, desc=name, unit=unit) if has_bar else None
        self._started = self._last_line = time.monotonic()
        self._first: int | None = None
        self._shown: int | None = None

    def update(self, done: int, note: str = "") -> None:
        """Set the amount done so far."""
        if self._is_silent:
            return
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
            return
        if self._first is None:
            self._first = done
        now = time.monotonic()
        is_end = done >= self.total and done != self._shown
        if is_end or now - self._last_line >= _LINE_EVERY_S:
            self._last_line, self._shown = now, done
            rate = (done - self._first) / max(1e-9, now - self._started)
            is_known = done > self._first  # not when all comes at once
            pace = f" ({rate:.1f}/s)" if is_known else ""
            line = f"{self._name}: {done}/{self.total} {self._unit}{pace} {note}"
            print(line.rstrip(), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
