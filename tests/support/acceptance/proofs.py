"""The outcomes of the tests that rows of the table point to; missing ones are run on demand."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

import pytest

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
_ROOT = Path(__file__).parents[3]
_FILE = "ADADECODE_TEST_OUTCOMES"  # file for the outcomes of a run started here


class Outcomes:
    """A pytest plugin that notes how every test of this run ends, by node id."""

    def __init__(self, shared: Path | None = None) -> None:
        """
        Args:
            shared: Directory where the processes of a run exchange outcomes, if there are several.
        """
        self._by_test: dict[str, str] = {}
        self._shared = shared

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst outcome among the set-up, call and teardown of a test."""
        if report.failed or report.skipped:
            self._by_test[report.nodeid] = FAILED if report.failed else SKIPPED
        else:
            self._by_test.setdefault(report.nodeid, PASSED)
        if self._shared is not None and report.when == "teardown":
            with (self._shared / str(os.getpid())).open("a") as file:
                file.write(json.dumps({report.nodeid: self._by_test[report.nodeid]}) + "\n")

    def pytest_sessionfinish(self) -> None:
        """Write the outcomes to the file that whoever started this run has named."""
        if file := os.environ.get(_FILE):
            Path(file).write_text(json.dumps(self._by_test))

    def of(self, proof: str) -> list[str]:
        """Return the outcomes of a test, one per set of parameters; none if it has not run."""
        return [
            outcome
            for name, outcome in self._by_test.items()
            if proof in (name, name.partition("[")[0])
        ]

    def run_missing(self, proofs: Collection[str]) -> None:
        """Run the tests that have no outcome yet, in one process of their own.

        Raises:
            AssertionError: if a test does not exist.
        """
        self._listen()
        missing = sorted({proof for proof in proofs if not self.of(proof)})
        if not missing:
            return
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "outcomes.json"
            run = subprocess.run(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *missing],
                cwd=_ROOT,
                env={**os.environ, "PYTHONPATH": str(_ROOT), _FILE: str(file)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert run.returncode in (0, 1), run.stdout + run.stderr
            self._by_test |= json.loads(file.read_text())

    def _listen(self) -> None:
        """Read the outcomes that other processes of the run have noted so far."""
        for file in () if self._shared is None else self._shared.iterdir():
            for line in file.read_text().splitlines():
                self._by_test |= json.loads(line)


OUTCOMES = pytest.StashKey[Outcomes]()
