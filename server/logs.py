"""Where the server's log goes, and how its lines look. What a request logs: `server.access_log`."""

import logging

_ACCESS = "server.access_log"


def set_up_logging(level: str, *, has_json_access: bool = False) -> None:
    """Log to standard error from `level` ("debug" … "error") on.

    Args:
        has_json_access: Access lines are JSON: they stand alone, without time and name before them.
    """
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # uvicorn's own news of starting and stopping repeat ours.
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("uvicorn.error").setLevel(max(wanted, logging.WARNING))
    if has_json_access:
        access = logging.getLogger(_ACCESS)
        access.setLevel(logging.INFO)  # asked for by name, whatever the level of the rest
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)
        access.propagate = False
