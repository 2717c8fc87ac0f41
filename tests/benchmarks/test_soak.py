from benchmarks.soak import SoakReport


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
