"""Third-party client libraries, unmodified, against the default model.

They are the extra `clients`. As they have many dependencies, they may be in an environment of their
own, whose interpreter ADADECODE_CLIENTS_PYTHON names. Tests of missing libraries are skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from default_model import ALIAS, default_model_directory
from real_server import real_server

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.model]

PYTHON = os.environ.get("ADADECODE_CLIENTS_PYTHON", sys.executable)
CHOICES = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: DIRECTORY/colours.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
GENERATION = """\
task: counting
dataset_path: json
dataset_kwargs: {data_files: {test: DIRECTORY/counting.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, temperature: 0, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
COLOURS = [
    {"question": f"{thing} is", "choices": [f" {right}", f" {wrong}"], "answer": 0}
    for thing, right, wrong in (
        ("The colour of grass", "green", "seventeen"),
        ("The sky on a clear day", "blue", "sandwich"),
        ("Fresh snow", "white", "quickly"),
        ("The capital of France", "Paris", "triangle"),
    )
]
COUNTING = [
    {"question": "1, 2, 3, 4,", "answer": "5, 6, 7"},
    {"question": "one two three one two three one two", "answer": "three"},
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Yield the address of a server with the default model."""
    with real_server() as url:
        yield url


def needs(library: str) -> pytest.MarkDecorator:
    """Skip a test where the interpreter lacks a library, before anything is started."""
    code = f"from importlib.util import find_spec; raise SystemExit(find_spec({library!r}) is None)"
    is_missing = subprocess.run([PYTHON, "-c", code], check=False).returncode != 0
    return pytest.mark.skipif(is_missing, reason=f"{library} is not installed (extra: clients)")


def run(script: str, *arguments: str) -> dict[str, Any]:
    """Run a script where the libraries are, and return the last line that it prints."""
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [PYTHON, str(path), *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return printed


@needs("langchain_openai")
def test_langchain(url):
    got = run("client_langchain.py", url, ALIAS)

    assert got["text"]
    assert got["streamed"] == got["text"]
    assert got["batch"] == [got["text"]] * 2
    assert got["finish_reason"] in ("stop", "length")
    assert 0 < got["usage"]["output_tokens"] <= 12
    assert got["num_chunks"] > 2
    assert got.get("tools_refused", "unsupported_parameter") == "unsupported_parameter"
    assert "tools" not in got or got["tools"][0] == "ai"


@needs("litellm")
def test_litellm(url):
    got = run("client_litellm.py", url, ALIAS)

    assert got["text"]
    assert got["streamed"] == got["text"]
    assert got["finish_reason"] in ("stop", "length")
    assert 0 < got["completion_tokens"] <= 12
    assert got["completion"]


def evaluate(url: str, directory: Path, task: str, text: str, rows: list[dict]) -> dict[str, Any]:
    (directory / f"{task}.yaml").write_text(text.replace("DIRECTORY", str(directory)))
    (directory / f"{task}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = str(default_model_directory())
    return run("client_lm_eval.py", url, ALIAS, tokenizer, str(directory), task)


@needs("lm_eval")
def test_lm_eval_generates(url, tmp_path):
    got = evaluate(url, tmp_path, "counting", GENERATION, COUNTING)

    assert len(got["samples"]) == len(COUNTING)
    assert all(isinstance(sample[0], str) and sample[0] for sample in got["samples"])
    assert 0 <= got["results"]["exact_match,none"] <= 1


@needs("lm_eval")
def test_lm_eval_weighs_choices(url, tmp_path):
    got = evaluate(url, tmp_path, "colours", CHOICES, COLOURS)

    assert got["results"]["acc,none"] == 1, "even a small model finds nonsense unlikely"
