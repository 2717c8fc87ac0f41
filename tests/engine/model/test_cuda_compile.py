"""CUDA kernels compile without spills, and all products sum in the same way.

Needs Triton but no GPU: the compiler and the assembler come with the package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cuda_backend import needs_triton

from engine.model.ops.cuda.tiles import CANDIDATES

pytestmark = [pytest.mark.torch, needs_triton]

_SCRIPT = Path(__file__).parents[2] / "support" / "compile_kernels.py"
_SHARED_BYTES = 227 * 1024  # shared memory that one program may use
_PRODUCT = "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32"


def compiled(*arguments: str) -> list[dict[str, Any]]:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def kernels() -> list[dict[str, Any]]:
    return compiled()


def test_they_compile_and_fit(kernels: list[dict[str, Any]]) -> None:
    for kernel in kernels:
        assert not kernel["spills"], kernel
        assert kernel["shared_bytes"] <= _SHARED_BYTES, kernel


def test_every_tile_of_a_linear_sums_with_the_same_instruction(
    kernels: list[dict[str, Any]],
) -> None:
    """Otherwise a token's bits would depend on how many others share its call."""
    linears = [kernel for kernel in kernels if kernel["kernel"].startswith("linear")]
    assert len(linears) == 2 * sum(map(len, CANDIDATES.values()))
    assert {product for kernel in linears for product in kernel["products"]} == {_PRODUCT}


@pytest.mark.parametrize(
    ("capability", "shared_kib"), [("80", 163), ("89", 99), ("100", 227), ("120", 99)]
)
def test_linears_compile_fit_and_sum_alike_on_other_cards(capability: str, shared_kib: int) -> None:
    linears = compiled(capability)

    assert linears
    for kernel in linears:
        assert not kernel["spills"], kernel
        assert kernel["shared_bytes"] <= shared_kib * 1024, kernel
        assert kernel["products"] == [_PRODUCT], kernel


def test_kernels_that_overlap_wait_before_they_touch_memory(kernels: list[dict[str, Any]]) -> None:
    waiting = {kernel["kernel"].split()[0] for kernel in kernels if kernel["waits_first"]}
    assert waiting == {"linear", "norm", "rotate", "attend", "combine"}
    assert False not in {kernel["waits_first"] for kernel in kernels}
