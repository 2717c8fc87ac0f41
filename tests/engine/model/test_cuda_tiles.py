"""Tiles are computed by default and measured where a table has them; none may change bits."""

from pathlib import Path

import pytest

from engine.model.ops.cuda.tiles import CANDIDATES, Tile, Tiles, TileTable

pytestmark = pytest.mark.torch

SHAPES = [(6144, 4096), (4096, 14336), (28672, 4096), (128256, 4096), (576, 576), (97, 56)]


@pytest.mark.parametrize("shape", SHAPES)
def test_every_tile_keeps_the_order_of_sums(shape: tuple[int, int]) -> None:
    """Computed tiles are cut like candidates, all of which `test_cuda_compile` compiles."""
    table = TileTable()
    tiles = table.tiles(shape)
    assert tiles == Tiles.of(*shape)
    for kind, candidates in CANDIDATES.items():
        assert all(tile.keeps_order for tile in candidates)
        default = getattr(tiles, kind)
        assert default.inner <= 256
        assert default.inner >= 16
        assert (default.rows, default.columns, default.num_warps) in {
            (tile.rows, tile.columns, tile.num_warps) for tile in candidates
        }


def test_narrow_steps_are_more_at_once_up_to_a_limit() -> None:
    """576 has 9 steps of 64, all of which may be in flight; 4112 has 257 of 16."""
    assert (Tiles.of(576, 576).few.inner, Tiles.of(576, 576).few.num_stages) == (64, 10)
    assert (Tiles.of(576, 4112).few.inner, Tiles.of(576, 4112).few.num_stages) == (16, 13)


def test_the_class_of_a_call_is_told_by_its_tokens() -> None:
    tiles = Tiles.of(4096, 4096)
    assert [tiles.for_tokens(n) for n in (1, 16, 32)] == [tiles.few] * 3
    assert [tiles.for_tokens(n) for n in (33, 64)] == [tiles.some] * 2
    assert tiles.for_tokens(65) == tiles.many


def test_what_was_measured_is_found_again_on_such_a_gpu(tmp_path: Path) -> None:
    file = tmp_path / "tiles.json"
    table = TileTable.read("GPU A", file)
    table.put((4096, 4096), "few", Tile(16, 16, 256, 2, 4))
    table.put((100, 48), "many", Tile(32, 128, 64, 4, 3))
    table.overlaps = True
    table.write("GPU A", file)
    TileTable().write("GPU B", file)

    again = TileTable.read("GPU A", file)
    assert again.overlaps
    assert not TileTable.read("GPU B", file).overlaps
    assert again.tiles((4096, 4096)).few == Tile(16, 16, 256, 2, 4)
    assert again.tiles((4096, 4096)).some == Tiles.of(4096, 4096).some
    assert again.tiles((100, 48)).many == Tile(32, 128, 16, 4, 4), "an inner step without a rest"
    assert TileTable.read("GPU B", file).tiles((4096, 4096)) == Tiles.of(4096, 4096)
