"""A small run of `bench structured`, all of whose twenty schemas can be enforced."""

import argparse
import json

import pytest
from default_model import default_model_directory

from benchmarks.cli import add_arguments, run
from benchmarks.schemas import TASKS, Task
from engine.grammar.schema import lowered


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_schemas_can_be_enforced(task: Task) -> None:
    assert lowered(json.loads(json.dumps(task.schema)))


@pytest.mark.torch
@pytest.mark.model
def test_answers_follow_their_schemas_and_exits_change_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("jsonschema_rs")
    default_model_directory()
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = ["--skip-schemas", "1", "--num-schemas", "2", "--num-seeds", "3"]
    assert run(parser.parse_args(["structured", *flags])) == 0
    total = capsys.readouterr().out.splitlines()[-1].split()
    assert total[:6] == ["all", "6", "requests", "6", "valid", "6"]
