"""Compiles CUDA kernels, which needs no GPU; prints the results as JSON.

For Hopper, every kernel, with every tile that tuning may choose; for the compute capability of
another card, given as an argument, the linear kernel with the tiles that are reasoned.

It is a process of its own, because a process either compiles kernels or interprets them, as tests
do.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from itertools import product

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from engine.model.ops.cuda import (
    attention_kernels,
    expect_kernel,
    linear_kernel,
    norm_kernel,
    sample_kernels,
)
from engine.model.ops.cuda.tiles import CANDIDATES, Tile, Tiles

_HOPPER = 90
_CAPABILITY = int(sys.argv[1]) if len(sys.argv) > 1 else _HOPPER
_WEIGHTS = (  # rows and columns, of Llama 3.1 8B and SmolLM2-135M
    *((28672, 4096), (4096, 14336), (6144, 4096), (4096, 4096), (128256, 4096)),
    *((3072, 576), (576, 1536), (960, 576), (576, 576), (49152, 576)),
)
_TYPES = {
    "positions": "*i32", "slots": "*i32", "rows": "*i32", "block_tables": "*i32",
    "token_ids": "*i32", "best_column": "*i64", "chosen": "*i64",
    "cos": "*fp32", "sin": "*fp32", "part_values": "*fp32", "part_max": "*fp32",
    "part_sum": "*fp32", "logits": "*fp32", "scales": "*fp32", "best": "*fp32",
    "num_tokens": "i32", "out_features": "i32", "in_features": "i32", "size": "i32",
    "table_stride": "i32", "num_chunks": "i32", "window": "i32", "row_stride": "i32",
    "num_columns": "i32", "num_blocks": "i32", "scale": "fp32", "eps": "fp32",
    "allowed": "*i32", "num_words": "i32", "other": "*fp32", "temperatures": "*fp32",
    "followers": "*i64", "expected": "*fp64",
}  # fmt: skip
_DIVISIBLE = ("out_features", "in_features", "size")


def _compile(name, kernel, constants, *, num_warps=4, num_stages=3, **types):  # type: ignore[no-untyped-def]
    names = kernel.arg_names
    known = _TYPES | types
    signature = {n: "constexpr" if n in constants else known.get(n, "*bf16") for n in names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, n in enumerate(names)
        if signature[n].startswith("*") or (n in _DIVISIBLE and n not in constants)
    }
    source = ASTSource(
        kernel,
        signature,
        {(names.index(n),): value for n, value in constants.items()},
        attributes,
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    target = GPUTarget("cuda", _CAPABILITY, 32)
    compiled = triton.compile(source, target=target, options=options)
    ptx = compiled.asm["ptx"]
    return {
        "kernel": name,
        "products": sorted({word for word in ptx.split() if "mma" in word and "." in word}),
        "shared_bytes": compiled.metadata.shared,
        "spills": "ld.local" in ptx,
        "waits_first": _waits_first(ptx),
    }


def _waits_first(ptx: str) -> bool | None:
    """Whether memory is first touched after the wait for the previous kernel; None: no wait."""
    before, wait, _ = ptx.partition("griddepcontrol.wait")
    touches = ("ld.global", "st.global", "cp.async", "st.shared")
    return not any(word in before for word in touches) if wait else None


def _linears(tiles: Iterable[Tile], overlapping: Iterable[Tile]) -> Iterator[dict[str, object]]:
    """Compile the linear kernel with these tiles, plain and gated."""
    for tile, is_gated in product(tiles, (False, True)):
        constants = {
            "bias": None,
            "HAS_BIAS": False,
            "HAS_RESIDUAL": not is_gated,
            "IS_GATED": is_gated,
            "IS_EVEN": True,
            "PRECISION": "ieee",
            "BLOCK_M": tile.rows,
            "BLOCK_N": max(16, tile.columns // 2) if is_gated else tile.columns,
            "BLOCK_K": tile.inner,
            "LINES": 16,
            "OVERLAPS": tile in overlapping,
        }
        yield _compile(
            f"linear {tile}{' gated' if is_gated else ''}",
            linear_kernel._linear_kernel,
            constants,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )


def _for_hopper() -> Iterator[dict[str, object]]:
    for candidates in CANDIDATES.values():
        yield from _linears(candidates, candidates[:1])
    yield from _others()


def _for_another() -> Iterator[dict[str, object]]:
    tiles = [Tiles.of(*weight) for weight in _WEIGHTS]
    yield from _linears(
        dict.fromkeys(t for each in tiles for t in (each.few, each.some, each.many)), ()
    )


def _others() -> Iterator[dict[str, object]]:
    heads = {"HEADS": 32, "SIZE": 128}
    cut = {"PADDED": 128, "TILE": 64, "MOST_CHUNKS": 64, "HAS_WINDOW": True, "OVERLAPS": True}
    yield _compile(
        "norm", norm_kernel._rms_norm_kernel, {"BLOCK": 4096, "OVERLAPS": True}, num_warps=8
    )
    yield _compile(
        "rotate",
        attention_kernels._rotate_and_write_kernel,
        heads
        | {"KV_HEADS": 8, "HALF": 64, "HAS_Q_NORM": True, "HAS_K_NORM": True, "OVERLAPS": True},
        num_warps=1,
    )
    yield _compile(
        "attend",
        attention_kernels._attend_kernel,
        heads | cut | {"KV_HEADS": 8, "GROUP": 4, "ROWS": 16, "BLOCK": 16, "PRECISION": "ieee"},
        num_stages=2,
    )
    yield _compile(
        "combine", attention_kernels._combine_kernel, heads | cut | {"COMBINED": 16}, num_warps=2
    )
    for has_ids in (False, True):
        constants = {"HAS_IDS": has_ids, "BLOCK": 2048}
        constants |= {} if has_ids else {"token_ids": None}
        yield _compile("exclude", sample_kernels._exclude_kernel, constants, num_warps=8)
        yield _compile(
            "sample", sample_kernels._best_of_block_kernel, constants, num_warps=8, keys="*i64"
        )
    yield _compile(
        "expect",
        expect_kernel._expect_kernel,
        {"BLOCK": expect_kernel._BLOCK},
        num_warps=16,
        keys="*i64",
    )
    yield _compile("best", sample_kernels._best_of_row_kernel, {"BLOCKS": 64}, num_warps=1)


if __name__ == "__main__":
    print(json.dumps([*(_for_hopper() if _CAPABILITY == _HOPPER else _for_another())]))
