"""Tuning keeps the fastest tiles that are exact."""

import itertools
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cuda_backend import DEVICE, needs_kernels

from benchmarks.gpu import tune
from benchmarks.gpu.bench import Bench, Model
from benchmarks.gpu.report import Report
from benchmarks.gpu.shapes import TINY
from engine.model.ops.cuda.tiles import CANDIDATES
from engine.model.ops.cuda_ops import CudaOps

pytestmark = [pytest.mark.torch, needs_kernels]

_WEE = replace(TINY, name="wee", hidden=32, feed_forward=48, layers=1, heads=2, kv_heads=1)


@pytest.mark.parametrize("is_exact", [True, False])
def test_the_fastest_tiles_are_used_if_rows_keep_their_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_exact: bool
) -> None:
    ops = CudaOps(torch.float32, device=DEVICE)
    model = Model(shape=_WEE, directory=_WEE.write(tmp_path / "wee"), ops=ops)
    bench = Bench(
        device=DEVICE,
        is_quick=True,
        model=None,
        prompts=None,
        folder=tmp_path,
        tiles=tmp_path / "tiles.json",
    )
    bench.__dict__.update(big=model, small=model)
    monkeypatch.setattr(tune, "_SECONDS", 0.2)  # time for only some of the tiles
    monkeypatch.setattr(tune, "uneven_counts", lambda _: [] if is_exact else [5])
    fastest = CANDIDATES["few"][-1]
    times = itertools.count(10**6, -1)
    monkeypatch.setattr(tune, "seconds", lambda *_: float(next(times)))
    before = ops.tiles

    report = Report(facts={}, file=None, deadline=time.time() + 60)
    report.run("tune", 60, lambda part: tune.measure(bench, part))

    assert report.failures == {}
    assert [figure.is_met for figure in report.figures[-1:]] == [is_exact] or DEVICE.type == "cuda"
    if is_exact:
        tile = ops.tiles.tiles(model.linears["gate_up"]).few
        assert (tile.columns, tile.num_stages) == (fastest.columns, fastest.num_stages)
    else:
        assert ops.tiles is before
