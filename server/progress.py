"""Progress of loading, for people: a bar in a terminal, a line now and then in a log."""

import logging
import sys
import time

from tqdm import tqdm

_LOG_INTERVAL_S = 5.0

logger = logging.getLogger(__name__)


class LoadProgress:
    """Shows the progress of loading; may be called often, and from another thread."""

    def __init__(self) -> None:
        self._text = ""
        self._logged_at = 0.0
        self._bar = tqdm(
            total=100, disable=not _is_terminal(), bar_format="{desc} {bar} {percentage:3.0f}%"
        )

    def __call__(self, text: str, fraction: float) -> None:
        """Show what is being done, and the fraction done."""
        percent = round(100 * fraction)
        if not self._bar.disable:
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = percent
            self._bar.refresh()
        elif text != self._text or time.monotonic() - self._logged_at > _LOG_INTERVAL_S:
            self._text, self._logged_at = text, time.monotonic()
            logger.info("%s (%d %%)", text, percent)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.leave = False
        self._bar.close()


def _is_terminal() -> bool:
    """Whether somebody sees standard error; it may be closed."""
    return sys.stderr is not None and sys.stderr.isatty()
