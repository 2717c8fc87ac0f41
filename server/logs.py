"""Sets up where the server's log goes and how its lines look; `server.access_log` logs requests."""

import logging

_ACCESS = "server.access_log"


def set_up_logging(level: str, *, has_json_access: bool = False) -> None:
    """Log to standard error from `level` ("debug" … "error") on.

    Args:
        level: The lowest level that is logged.
        has_json_access: Access lines are JSON, so they are written without time and logger name.
    """
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # uvicorn's own lines on starting and stopping would repeat ours.
    wanted = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger("uvicorn.error").setLevel(max(wanted, logging.WARNING))
    if has_json_access:
        access = logging.getLogger(_ACCESS)
        access.setLevel(logging.INFO)  # whatever `level` is: these lines were asked for by name
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        access.addHandler(handler)
        access.propagate = False
