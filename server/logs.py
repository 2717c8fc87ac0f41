"""What the server logs: one line per request, none for probes and scrapes, no prompts ever."""

import logging

_QUIET_PATHS = ("/health", "/ready", "/metrics")


def set_up_logging(level: str) -> None:
    """Log to standard error from `level` ("debug" … "error") on."""
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # uvicorn's own news of starting and stopping repeat ours.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("uvicorn.access").addFilter(_is_worth_a_line)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """uvicorn's access records carry (client, method, path, HTTP version, status)."""
    if not isinstance(record.args, tuple) or len(record.args) != 5:
        return True
    return str(record.args[2]).partition("?")[0] not in _QUIET_PATHS
