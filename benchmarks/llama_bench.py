"""Runs llama.cpp's own benchmark, `llama-bench`.

The program, found on PATH or given, is all that is needed of llama.cpp.
"""

import json
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """The speed of one stream, in tokens per second."""

    prompt: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaBench:
    """The `llama-bench` program, and the lengths that it measures."""

    program: str
    num_threads: int
    num_prompt_tokens: int
    num_output_tokens: int

    def run(self, file: Path, num_before: int) -> Speed:
        """Measure a GGUF file once.

        Args:
            num_before: Tokens in the KV cache before decoding, which every step has to read.

        Raises:
            ValueError: if the program fails, or prints something unexpected.
        """
        return Speed(
            prompt=self._measure(file, "-p", str(self.num_prompt_tokens), "-n", "0"),
            decode=self._measure(
                file, "-p", "0", "-n", str(self.num_output_tokens), "-d", str(num_before)
            ),
        )

    def _measure(self, file: Path, *what: str) -> float:
        """Return the tokens per second of one test."""
        command = [self.program, "-m", str(file), "-t", str(self.num_threads), "-r", "1"]
        command += [*what, "-o", "json"]
        try:
            outcome = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"{self.program} could not run: {error}") from error
        if outcome.returncode < 0:
            raise ValueError(f"{self.program} died: {signal.strsignal(-outcome.returncode)}")
        if outcome.returncode != 0:
            lines = outcome.stderr.strip().splitlines() or ["no message"]
            raise ValueError(f"{self.program} failed: {lines[-1]}")
        return parse(outcome.stdout)


def find_llama_bench(given: Path | None) -> str | None:
    """Return the program given, or the one on PATH, or None.

    Raises:
        ValueError: if the one given does not exist.
    """
    if given is None:
        return shutil.which("llama-bench")
    if not given.is_file():
        raise ValueError(f"--llama-bench: {given} is not a file")
    return str(given)


def parse(output: str) -> float:
    """Parse the tokens per second of the single test that `llama-bench -o json` printed.

    Raises:
        ValueError: if the output is something else.
    """
    try:
        (test,) = json.loads(output)
        return float(test["avg_ts"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"llama-bench printed something unexpected: {error!r}") from error
