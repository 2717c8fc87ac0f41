"""llama.cpp's own benchmark as a contestant: its `llama-bench`, run as it comes.

Nothing of llama.cpp is needed but that program, found on PATH or given.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 900


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of one stream."""

    prompt: float
    decode: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaBench:
    """The program, and what it is to measure."""

    program: str
    num_threads: int
    num_prompt_tokens: int
    num_output_tokens: int

    def run(self, file: Path, num_before: int) -> Speed:
        """One run on a GGUF file.

        Args:
            num_before: Tokens that decoding follows: what is in the cache costs every step.

        Raises:
            ValueError: when it fails, or prints what we do not understand.
        """
        return Speed(
            prompt=self._measure(file, "-p", str(self.num_prompt_tokens), "-n", "0"),
            decode=self._measure(
                file, "-p", "0", "-n", str(self.num_output_tokens), "-d", str(num_before)
            ),
        )

    def _measure(self, file: Path, *what: str) -> float:
        """Tokens per second of one test."""
        command = [self.program, "-m", str(file), "-t", str(self.num_threads), "-r", "1"]
        command += [*what, "-o", "json"]
        try:
            outcome = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ValueError(f"{self.program} could not run: {error}") from error
        if outcome.returncode != 0:
            lines = outcome.stderr.strip().splitlines() or ["no message"]
            raise ValueError(f"{self.program} failed: {lines[-1]}")
        return parse(outcome.stdout)


def find_llama_bench(given: Path | None) -> str | None:
    """The program given, or the one on PATH, or None.

    Raises:
        ValueError: the one given is not there.
    """
    if given is None:
        return shutil.which("llama-bench")
    if not given.is_file():
        raise ValueError(f"--llama-bench: {given} is not a file")
    return str(given)


def parse(output: str) -> float:
    """Tokens per second of the one test that it printed with `-o json`.

    Raises:
        ValueError: it is something else.
    """
    try:
        (test,) = json.loads(output)
        return float(test["avg_ts"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"llama-bench printed something unexpected: {error!r}") from error
