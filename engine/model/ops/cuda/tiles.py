"""How products on CUDA are cut into programs and launched; this changes speed, never bits.

A weight has one tile for each class of calls; a call's class is decided by its number of tokens.
Tiles are computed, unless `tiles.json` beside this file has measured ones for the GPU at hand and
the weight's shape: `python -m benchmarks.gpu --parts tune` writes it. `linear_kernel` explains why
no choice changes bits. Needs no Triton.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("tiles.json")

Shape = tuple[int, int]  # (out, in) of a weight


@dataclass(frozen=True, slots=True)
class Tile:
    """The share of a product that one program computes, and how it is launched."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int

    @property
    def keeps_order(self) -> bool:
        """Whether the compiler cannot use wgmma, which would sum in another order."""
        return self.rows < 64 or self.num_warps < 4


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of one weight, by class of call."""

    few: Tile  # at most 32 tokens: bound by reading the weight, once per 16 tokens
    some: Tile  # at most 64 tokens
    many: Tile  # more

    @classmethod
    def of(cls, out_features: int, in_features: int) -> "Tiles":
        """Compute tiles for a weight [out, in] on a GPU of some 130 processors."""
        return cls(
            few=_fitted(_few(out_features), in_features),
            some=_fitted(Tile(64, 32, 128, 2, 3), in_features),
            many=_fitted(Tile(64, 128, 64, 2, 3), in_features),
        )

    def for_tokens(self, count: int) -> Tile:
        """Return the tile for a call of so many tokens."""
        if count <= MOST_FEW:
            return self.few
        return self.some if count <= MOST_SOME else self.many


MOST_FEW, MOST_SOME = 32, 64  # most tokens of a call of the class

_PROCESSORS = 132  # streaming multiprocessors of an H100
_SHARED_BYTES = 227 * 1024  # shared memory of a processor
_MOST_AHEAD = 12  # most steps fetched ahead: each adds code before the loop


def _few(out_features: int) -> Tile:
    """Choose a tile narrow enough for two programs per processor, and as deep as lets all programs
    run at once.

    If there are too many programs for that, the depth is the one that leaves most of them for the
    last round: bandwidth falls when few programs run.
    """
    columns = next((n for n in (64, 32) if out_features // n >= 256), 16)
    inner = 256 if columns == 16 else 128

    def last_round(stages: int) -> float:
        """Return how full the last round of programs is; 1 if there is only one round."""
        # A program has `stages` - 1 buffers and 1 KiB besides; a number takes 2 bytes.
        num_bytes = (stages - 1) * (16 + columns) * inner * 2 + 1024
        rounds = -(-out_features // columns) / (_SHARED_BYTES // num_bytes * _PROCESSORS)
        return 1.0 if rounds <= 1 else rounds % 1 or 1.0

    stages = max((5, 4, 3), key=last_round)
    return Tile(16, columns, inner, 4, stages)


# The tiles that are worth timing, by class of call.
CANDIDATES: Mapping[str, tuple[Tile, ...]] = {
    "few": (
        Tile(16, 16, 256, 4, 4),
        Tile(16, 16, 256, 4, 5),
        Tile(16, 16, 128, 4, 6),
        Tile(16, 16, 256, 2, 5),
        Tile(16, 16, 512, 4, 3),
        Tile(16, 16, 512, 4, 4),
        Tile(16, 32, 128, 4, 6),
        Tile(16, 32, 256, 4, 3),
        Tile(16, 32, 256, 4, 5),
        Tile(16, 32, 128, 2, 5),
        Tile(16, 64, 128, 4, 3),
        Tile(16, 64, 128, 4, 4),
        Tile(16, 64, 128, 4, 5),
        Tile(16, 64, 256, 4, 3),
        Tile(16, 64, 64, 4, 6),
        Tile(16, 128, 64, 4, 5),
    ),
    "some": (
        Tile(64, 32, 128, 2, 3),
        Tile(64, 64, 64, 2, 3),
        Tile(32, 64, 64, 4, 4),
        Tile(32, 32, 128, 4, 3),
        Tile(32, 128, 128, 4, 3),
        Tile(32, 128, 64, 4, 4),
        Tile(16, 64, 64, 4, 5),
        Tile(16, 32, 128, 4, 4),
    ),
    "many": (
        Tile(64, 128, 64, 2, 3),
        Tile(64, 64, 64, 2, 4),
        Tile(32, 128, 64, 4, 3),
    ),
}


class TileTable:
    """The tiles of weights by shape, for one kind of GPU."""

    def __init__(
        self, measured: Mapping[Shape, Tiles] | None = None, *, overlaps: bool = False
    ) -> None:
        """
        Args:
            overlaps: Launch kernels before those ahead have ended; see `overlap`.
        """
        self._tiles = dict(measured or {})
        self.overlaps = overlaps

    @classmethod
    def read(cls, gpu: str, file: Path = TABLE) -> "TileTable":
        """Read what was measured on GPUs of this name, if anything was."""
        entries = _read(file).get(gpu, {"overlaps": False, "tiles": {}})
        return cls(
            {
                _shape(text): Tiles(**{kind: Tile(*sizes) for kind, sizes in tiles.items()})
                for text, tiles in entries["tiles"].items()
            },
            overlaps=entries["overlaps"],
        )

    def tiles(self, shape: Shape) -> Tiles:
        """Return the tiles of a weight [out, in]."""
        if shape not in self._tiles:
            self._tiles[shape] = Tiles.of(*shape)
        return self._tiles[shape]

    def put(self, shape: Shape, kind: str, tile: Tile) -> None:
        """Use a tile for a shape and a class of calls from now on."""
        fitted = _fitted(tile, shape[1])
        self._tiles[shape] = replace(self.tiles(shape), **{kind: fitted})

    def write(self, gpu: str, file: Path = TABLE) -> None:
        """Add this table to the file, as measured on GPUs of this name."""
        content = _read(file)
        known = content.get(gpu, {}).get("tiles", {})
        measured = {
            f"{out}x{inner}": {
                kind: list(asdict(getattr(tiles, kind)).values()) for kind in CANDIDATES
            }
            for (out, inner), tiles in sorted(self._tiles.items())
        }
        content[gpu] = {"overlaps": self.overlaps, "tiles": known | measured}
        file.write_text(json.dumps(content, indent=1) + "\n")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        return {}
    content: dict[str, dict[str, Any]] = json.loads(file.read_text())
    return content


def _shape(text: str) -> Shape:
    out, inner = map(int, text.split("x"))
    return out, inner


def _fitted(tile: Tile, in_features: int) -> Tile:
    """Return the tile with the widest inner step that divides the inner dimension, or with its own
    if none does.

    If the step gets narrower, more of them are fetched ahead, to keep as many bytes in flight.
    """
    steps = [step for step in (512, 256, 128, 64, 32, 16) if step <= tile.inner]
    inner = next((step for step in steps if in_features % step == 0), steps[0])
    as_many_bytes = (tile.num_stages - 1) * tile.inner // inner
    ahead = min(as_many_bytes, -(-in_features // inner), _MOST_AHEAD)
    return replace(tile, inner=inner, num_stages=max(tile.num_stages, ahead + 1))
