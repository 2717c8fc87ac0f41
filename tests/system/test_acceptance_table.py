"""Tries every row of the acceptance table: faults and bad inputs, with common post-conditions.

The rows are in tests/support/acceptance; `make acceptance` writes docs/acceptance.md from them. The
tests that a row points to have to pass in the same run; those that are not part of it are run here.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from acceptance.document import DOCUMENT, document
from acceptance.proofs import OUTCOMES, PASSED, Outcomes
from acceptance.row import Row
from acceptance.rows import ROWS
from acceptance.table_server import Serve, TableServer, serve

PARAMETERS = [
    pytest.param(row, id=str(row.number), marks=[getattr(pytest.mark, name) for name in row.marks])
    for row in ROWS
]


@pytest.fixture(scope="module")
def shared() -> Iterator[TableServer]:
    """Yield one server for all rows without settings, so that none may leave anything behind."""
    with serve() as server:
        yield server
        server.log.records.clear()  # they include other servers' records


@pytest.fixture
def make_server(shared: TableServer) -> Serve:
    """See `Serve`."""

    @contextmanager
    def in_company() -> Iterator[TableServer]:
        with shared.company():
            yield shared
        shared.assert_settled()

    def make(**options: Any) -> AbstractContextManager[TableServer]:
        return serve(**options) if options else in_company()

    return make


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Outcomes:
    """Return the outcomes of the tests that the rows of this run point to."""
    noted = request.config.stash[OUTCOMES]
    rows = [
        item.callspec.params.get("row")
        for item in request.session.items
        if hasattr(item, "callspec")
    ]
    noted.run_missing([proof for row in rows if isinstance(row, Row) for proof in row.proofs])
    return noted


@pytest.mark.parametrize("row", PARAMETERS)
def test_row(row: Row, make_server: Serve, outcomes: Outcomes) -> None:
    for check in row.checks:
        check(make_server)
    for proof in row.proofs:
        ends = outcomes.of(proof)
        assert ends, f"{proof} has not run"
        assert set(ends) == {PASSED}, f"{proof}: {ends}"
    assert row.checks or row.proofs or row.note


def test_every_row_is_here_and_written_down() -> None:
    numbers = [row.number for row in ROWS]
    assert numbers == list(range(1, 77))
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == document(dict.fromkeys(numbers, PASSED)), "run: make acceptance"
