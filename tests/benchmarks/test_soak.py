import pytest

from benchmarks.soak import SoakReport
from server.cli import main


@pytest.mark.parametrize(
    "flags",
    [
        "--minutes 0",
        "--minutes nan",
        "--requests 0",
        "--concurrency 0",
        "--max-num-seqs 0",
        "--max-tokens 1",
        "--abort-share 1",
        "--kill-every -1",
        "--kill-every nan",
    ],
)
def test_a_soak_of_nothing_is_refused(monkeypatch, capsys, flags):
    monkeypatch.setattr("benchmarks.soak.ready_server", None)  # none is started
    try:
        status = main(["bench", "soak", *flags.split()])
    except SystemExit as refused:
        status = refused.code
    assert status == 2
    assert flags.split()[0] in capsys.readouterr().err


def test_the_memory_slope_leaves_the_warm_up_out():
    samples = [(float(t), 100.0 if t < 30 else 200.0 + t / 60) for t in range(90)]
    report = SoakReport(rss_mb=samples)

    assert abs(report.rss_slope_mb_per_hour - 60) < 1e-6
    assert SoakReport().rss_slope_mb_per_hour == 0


def test_clean_is_nothing_lost_wrong_hung_or_left_behind():
    assert SoakReport(finished=1, left_behind={"a": 0.0}).is_clean
    assert not SoakReport().is_clean
    assert not SoakReport(finished=1, lost=1).is_clean
    assert not SoakReport(finished=1, wrong=1).is_clean
    assert not SoakReport(finished=1, hung=1).is_clean
    assert not SoakReport(finished=1, left_behind={"a": 0.1}).is_clean
