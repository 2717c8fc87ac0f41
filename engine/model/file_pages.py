"""Letting go of the pages of memory-mapped files that were read.

A checkpoint is read through a mapping and packed into another form. What was read would count as
this process's memory until the system wants it: a loading worker would seem, to whatever limits
its memory, to need the model twice.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path


def let_go(files: Iterable[Path]) -> None:
    """Take these files' pages from the process; the next access finds them in the file cache.

    Nobody may have written to the mappings. Does nothing where the system has no /proc.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for start, length in _mappings({str(file.resolve()) for file in files}):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _mappings(paths: set[str]) -> Iterator[tuple[int, int]]:
    """Address and length of every mapping of one of these files."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in paths:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end - start
