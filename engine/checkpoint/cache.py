"""The cache of converted checkpoints: `$ADADECODE_CACHE` or ~/.cache/adadecode.

gguf/<sha256 of the file>-v<converter>/   a converted directory, complete or absent
hashes/<key of path, size, mtime>         the file's sha256: a second start does not read it again
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Progress = Callable[[str, float], None]

_CONVERTER_VERSION = 6  # raise it when a conversion would write something else
_CHUNK_BYTES = 1 << 22
_SCRATCH = ".building-"  # begins the names of directories that are being written
_ABANDONED_S = 24 * 3600.0  # a scratch directory so old was left by a process that was killed


def cache_root() -> Path:
    """Return the directory that holds converted checkpoints and other cached files."""
    configured = os.environ.get("ADADECODE_CACHE")
    return Path(configured).expanduser() if configured else Path.home() / ".cache" / "adadecode"


def converted_directory(file: Path, progress: Progress) -> Path:
    """Return where the conversion of a GGUF file is, or would be."""
    return _conversions() / f"{_memoized_sha256(file, progress)}-v{_CONVERTER_VERSION}"


def is_conversion(directory: Path) -> bool:
    """Whether a directory is where conversions of GGUF files are."""
    return directory.parent == _conversions()


def _conversions() -> Path:
    return cache_root() / "gguf"


def _memoized_sha256(file: Path, progress: Progress) -> str:
    stat = file.stat()
    identity = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    memo = cache_root() / "hashes" / hashlib.sha256(identity.encode()).hexdigest()
    with suppress(OSError):
        return memo.read_text()
    digest = _sha256(file, stat.st_size, progress)
    with suppress(OSError):  # the next start reads the file again
        _write_memo(memo, digest)
    return digest


def _write_memo(memo: Path, digest: str) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=memo.parent, delete=False) as scratch:
        scratch.write(digest)
    put_in_place(Path(scratch.name), memo)


def _sha256(file: Path, size: int, progress: Progress) -> str:
    digest, done = hashlib.sha256(), 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            progress("hashing the file", done / max(size, 1))
    return digest.hexdigest()


@contextmanager
def building(directory: Path) -> Iterator[Path]:
    """Yield a scratch directory that becomes `directory` if the block succeeds, else is removed.

    Two processes may build the same directory: the first to finish wins.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory.parent)
    scratch = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_SCRATCH))
    try:
        yield scratch
        scratch.chmod(0o777 & ~_umask())  # `mkdtemp` lets nobody else in
        try:
            put_in_place(scratch, directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def put_in_place(fresh: Path, place: Path) -> None:
    """Give a file or directory its final name once the disk has all of it.

    Without that a power cut may leave the name with empty files, which no later start would repair.
    """
    for path in (*fresh.rglob("*"), fresh):
        _sync(path)
    fresh.rename(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot sync directories
            raise
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path) -> None:
    for scratch in parent.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            if time.time() - scratch.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(scratch, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)  # it can only be read by setting it
    os.umask(mask)
    return mask
