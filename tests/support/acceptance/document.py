"""Writes docs/acceptance.md, the table with its outcomes. Run this to try every row."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from acceptance.proofs import PASSED, Outcomes
from acceptance.row import Row
from acceptance.rows import ROWS

DOCUMENT = Path(__file__).parents[3] / "docs" / "acceptance.md"
_TESTS = "tests/system/test_acceptance_table.py"
_EXPLAINED, _MET = "explained", "met"

_HEAD = """\
# Acceptance table

What is done to the server, what it then does, and what shows that. `make acceptance` tries every \
row and writes this file; a test keeps it true, and CI runs every row.

A row's checks (`tests/support/acceptance`) run against the whole server around a fake model: \
HTTP, queues, scheduler, blocks and streams are the product's own. After each of them:

- `/health` says 200 and a canary request gets the same answer as at first; while rows run on the \
shared server, another client keeps streaming the canary and gets its text every time;
- no sequence is open in the engine or its worker, no block is held, every structure's own \
invariants hold;
- no asyncio task and no file descriptor is left;
- what was refused has OpenAI's envelope with the parameter's name, never reached the worker, and \
reveals no internals (paths, classes, tracebacks) and nothing of the input;
- every answer carries its X-Request-Id; no error was logged except for what the row is about, \
and nothing of a prompt was logged at all.

Other tests that a row names have to exist and pass in the same run. They show what a fake model \
cannot: kernels, processes, signals, the default model.

| | input or fault | what happens | outcome | shown by |
|---|---|---|---|---|
"""


def document(outcomes: Mapping[int, str]) -> str:
    """Return the whole document, from the outcome of every row's test."""
    return _HEAD + "".join(_line(row, outcomes.get(row.number, "not run")) for row in ROWS)


def _line(row: Row, outcome: str) -> str:
    is_tried = bool(row.checks or row.proofs)
    verdict = _MET if is_tried else _EXPLAINED
    if outcome != PASSED:
        verdict = f"**{outcome}**"
    happens = f"{row.expected}. {row.note}".rstrip() if row.note else row.expected
    shown = [_name(check) for check in row.checks]
    shown += [f"`{proof.removeprefix('tests/')}`" for proof in row.proofs]
    cells = (str(row.number), row.fault, happens, verdict, ", ".join(shown))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _name(check: object) -> str:
    """Return the name of a check, or the label of one that was made of data."""
    module = getattr(check, "__module__", "").rpartition(".")[2]
    return getattr(check, "label", f"`{module}.{getattr(check, '__name__', '')}`")


def main() -> int:
    """Try every row and write the document; return 0 if all are met."""
    seen = Outcomes()
    status = pytest.main(["-q", "-p", "no:cacheprovider", _TESTS], plugins=[seen])
    ends = {row.number: seen.of(f"{_TESTS}::test_row[{row.number}]") for row in ROWS}
    outcomes = {number: end[0] for number, end in ends.items() if end}
    DOCUMENT.write_text(document(outcomes), encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
