import argparse

import pytest

from benchmarks.cli import add_arguments


def parse(*flags):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(["latency", *flags])


def test_defaults_run_everything_on_the_built_in_model():
    args = parse()

    assert args.model == "smollm2-135m-instruct"
    assert args.modes is None
    assert args.concurrency == (1, 4, 8)


def test_lists_are_separated_by_commas():
    args = parse("--concurrency", "8,1,8", "--modes", "plain,early-exit")

    assert args.concurrency == (1, 8)
    assert args.modes == ("plain", "early-exit")


@pytest.mark.parametrize(
    "flags", [("--modes", "fast"), ("--concurrency", "0"), ("--max-tokens", "-1")]
)
def test_nonsense_is_refused(flags):
    with pytest.raises(SystemExit):
        parse(*flags)
