import logging

import pytest

from server.logs import _is_worth_a_line


@pytest.mark.parametrize(
    ("path", "is_logged"),
    [("/v1/models", True), ("/health", False), ("/metrics?x=1", False), ("/healthy", True)],
)
def test_probes_and_scrapes_are_not_logged(path, is_logged):
    args = ("127.0.0.1:1", "GET", path, "1.1", 200)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 0, "%s %s %s %s %d", args, None)

    assert bool(_is_worth_a_line(record)) is is_logged
