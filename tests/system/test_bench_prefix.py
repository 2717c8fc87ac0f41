"""A small run of `bench prefix` on the default model; full figures are in benchmarks/RESULTS.md."""

import pytest

from server.cli import main

pytestmark = [pytest.mark.model, pytest.mark.slow]


def test_a_repeated_prompt_begins_much_sooner(real_server_url, capsys):
    flags = ["--ways", "http", "--base-url", real_server_url, "--num-prompts", "2"]
    status = main(["bench", "prefix", *flags, "--input-len", "512", "--target", "0.5"])

    shown = capsys.readouterr().out
    assert status == 0, shown
    assert "496 of 512" in shown  # all but the last block, whose last token has to be computed
