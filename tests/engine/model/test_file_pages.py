"""Pages that were read are released, and read again when they are needed."""

import mmap
import sys
from pathlib import Path

import pytest

from engine.model.file_pages import let_go


def resident_kib(file: Path) -> int:
    """Return the resident KiB of all mappings of a file in this process."""
    total, is_its = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(maxsplit=1)[0]:
            is_its = line.endswith(str(file))
        elif is_its and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_pages_are_let_go_and_come_back(tmp_path: Path) -> None:
    size = 1 << 20
    mine, other = tmp_path / "mine", tmp_path / "other"
    for path in (mine, other):
        path.write_bytes(b"x" * size)
    with mine.open("rb") as first, other.open("rb") as second:
        mapped = mmap.mmap(first.fileno(), size, access=mmap.ACCESS_READ)
        kept = mmap.mmap(second.fileno(), size, access=mmap.ACCESS_READ)
        assert mapped[:] == kept[:]
        assert resident_kib(mine) == resident_kib(other) == size // 1024

        let_go([mine])

        assert resident_kib(mine) == 0
        assert resident_kib(other) == size // 1024
        assert mapped[:] == kept[:]
