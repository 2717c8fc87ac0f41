"""Compilation of the native kernels by the machine's C compiler, once, into a cache.

The cache is keyed by source, compiler and CPU, so that they are compiled again after an upgrade or
a move to another machine. Where the cache cannot be written, this process alone has them.
Needs a C compiler and libc, nothing else.
"""

import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from engine.checkpoint.cache import cache_root, put_in_place

logger = logging.getLogger(__name__)

_FLAGS = (
    "-std=gnu11",
    "-O3",
    "-march=native",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fPIC",
    "-shared",
    "-pthread",
    "-Wno-psabi",
)


class BuildError(Exception):
    """The kernels could not be compiled; the message says why."""


def library_path() -> Path:
    """Return the path of the compiled library; compiles it if it is not in the cache.

    Raises:
        BuildError: if there is no compiler, or it fails.
    """
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        raise BuildError("no C compiler (cc, gcc or clang) on PATH")
    sources = Path(__file__).parent
    target = cache_root() / "kernels" / f"kernels-{_key(sources, compiler)}.so"
    try:
        if not target.exists():
            _compile(compiler, sources, target)
    except OSError as error:
        logger.warning("compiled kernels cannot be kept in %s: %s", target.parent, error)
        target = Path(_scratch().name) / target.name
        _compile(compiler, sources, target)
    return target


@cache
def _scratch() -> "tempfile.TemporaryDirectory[str]":
    """Return a directory that is removed when the process ends."""
    return tempfile.TemporaryDirectory()


def _compile(compiler: str, sources: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as directory:
        built = Path(directory) / "kernels.so"
        files = sorted(str(path) for path in sources.glob("*.c"))
        command = [compiler, *_FLAGS, *files, "-o", str(built), "-lm"]
        try:
            outcome = subprocess.run(
                command, capture_output=True, text=True, timeout=300, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BuildError(f"{compiler} could not run: {error}") from error
        if outcome.returncode != 0:
            lines = outcome.stderr.strip().splitlines() or ["no message"]
            raise BuildError(f"{compiler} failed: {lines[0]}")
        put_in_place(built, target)


def _key(sources: Path, compiler: str) -> str:
    digest = hashlib.sha256()
    for path in sorted([*sources.glob("*.c"), *sources.glob("*.h")]):
        digest.update(path.read_bytes())
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    digest.update(version + " ".join(_FLAGS).encode() + _cpu().encode())
    return digest.hexdigest()[:24]


def _cpu() -> str:
    """Return what decides which instructions `-march=native` allows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("flags", "Features", "model name", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))
