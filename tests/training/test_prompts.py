"""Prompts come from files, whose errors are named, and from the standard library."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from training.prompts import Prompt, code_prompts, read_prompts, shuffled


def test_reads_rows_with_and_without_task(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"task": "qa", "prompt": "b"}))
    assert read_prompts(path) == [Prompt("prompt", "a"), Prompt("qa", "b")]


@pytest.mark.parametrize("line", ["{", "[1]", '{"text": "x"}', "3"])
def test_names_the_line_that_is_wrong(tmp_path: Path, line: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        read_prompts(path)


@pytest.mark.filterwarnings("error")
def test_code_prompts_are_many_different_and_repeatable() -> None:
    prompts = code_prompts()
    assert len(prompts) > 200
    assert len({prompt.text for prompt in prompts}) == len(prompts)
    assert prompts == code_prompts()
    assert any("def " in prompt.text for prompt in prompts)


def test_code_prompts_are_the_same_in_every_process() -> None:
    code = "from training.prompts import code_prompts; print(repr(code_prompts()))"
    command = [sys.executable, "-c", code]  # here, other tests' imports may add to the library
    one, other = (subprocess.check_output(command, text=True) for _ in range(2))
    assert one == other


def test_shuffling_is_fixed() -> None:
    prompts = code_prompts()
    assert shuffled(prompts) == shuffled(prompts) != prompts
