import argparse

import pytest

from benchmarks.cli import add_arguments, main


def parse(*flags, command="latency"):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args([command, *flags])


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
    "flags",
    [
        ("--modes", "fast"),
        ("--concurrency", "0"),
        ("--max-tokens", "-1"),
        ("--threshold", "nan"),
        ("--temperature", "-1"),
    ],
)
def test_nonsense_is_refused(flags):
    with pytest.raises(SystemExit):
        parse(*flags)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("latency", "--json"),
        ("latency", "--plot"),
        ("latency", "--costs"),
        ("heads", "--json"),
        ("peers", "--json"),
        ("peers", "--plot"),
        ("ablation", "--markdown"),
        ("ablation", "--plot"),
        ("learn", "--plot"),
        ("prefix", "--json"),
        ("soak", "--json"),
        ("serve", "--result-filename"),
    ],
)
def test_nothing_runs_whose_result_cannot_be_written(capsys, tmp_path, command, flag):
    with pytest.raises(SystemExit) as refusal:
        parse(flag, str(tmp_path / "nowhere" / "x"), command=command)
    assert refusal.value.code == 2
    assert f"argument {flag}: {tmp_path / 'nowhere'} is not a directory" in capsys.readouterr().err


@pytest.mark.torch
def test_a_file_that_cannot_be_read_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("benchmarks.latency.run", lambda args: args.prompts.read_text())
    missing = tmp_path / "prompts.jsonl"
    monkeypatch.setattr("sys.argv", ["bench", "latency", "--prompts", str(missing)])
    assert main() == 1
    error = capsys.readouterr().err
    assert error.startswith("adadecode bench latency: ")
    assert error.count("\n") == 1
    assert str(missing) in error
