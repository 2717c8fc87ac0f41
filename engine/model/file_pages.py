"""Release of the pages of memory-mapped files once they have been read.

A checkpoint is read through a mapping and packed into another form. The pages read would count as
this process's memory until the system reclaims them: to whatever limits its memory, a worker that
loads a model would seem to need it twice.
"""

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path


def let_go(files: Iterable[Path]) -> None:
    """Release these files' mapped pages; the next access finds them in the file cache.

    The mappings must not have been written to. Does nothing where the system has no /proc.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for start, length in _mappings({str(file.resolve()) for file in files}):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _mappings(paths: set[str]) -> Iterator[tuple[int, int]]:
    """Yield the address and length of every mapping of one of these files."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in paths:
            start, end = (int(address, 16) for address in fields[0].split("-"))
            yield start, end - start
