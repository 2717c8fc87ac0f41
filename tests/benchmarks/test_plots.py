import pytest

from benchmarks.comparison import Run, compare
from benchmarks.plots import plot_latency

pytest.importorskip("matplotlib")


def test_a_picture_is_written(tmp_path):
    runs = [
        Run(
            mode=mode,
            concurrency=concurrency,
            prompt_indices=(0,),
            tasks=("math",),
            token_ids=((1, 2),),
            duration_s=1.0,
            first_token_s=0.5,
        )
        for mode in ("plain", "early-exit")
        for concurrency in (1, 4)
    ]

    plot_latency(compare(runs), tmp_path / "bars.png", "a title")

    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
