"""Traffic that has corrupted other servers, on the default model with a small KV cache."""

import argparse

import pytest

from benchmarks import traces

pytestmark = [pytest.mark.torch, pytest.mark.model, pytest.mark.slow]


def test_every_finished_answer_is_the_one_given_alone(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    traces.add_arguments(parser)
    assert traces.run(parser.parse_args(["--traces", "3", "--bodies", "8"])) == 0
    printed = capsys.readouterr().out
    assert "num_preemptions_total            0" not in printed, "the cache was large enough"
    assert "prefix_cache_hits_total          0" not in printed, "nothing was shared"
