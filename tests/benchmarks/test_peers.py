"""llama.cpp, whose program is scripted, against our engine on a tiny model."""

import json
import stat
from argparse import Namespace

import numpy as np
import pytest
from character_tokenizer import write_character_tokenizer
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter
from tiny_model import write_tiny_llama

from benchmarks.cli import main
from benchmarks.llama_bench import LlamaBench, Speed, find_llama_bench, parse
from benchmarks.peer_files import PRECISIONS, in_precision, source_file
from benchmarks.peers import _config

TEST = {"n_prompt": 256, "n_gen": 0, "avg_ts": 812.5}


def program(tmp_path, text):
    file = tmp_path / "llama-bench"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def bench(file):
    return LlamaBench(program=str(file), num_threads=3, num_prompt_tokens=256, num_output_tokens=96)


def test_activations_are_rounded_where_llama_cpp_rounds_them(tmp_path):
    args = Namespace(activation_quantization="int8")
    forms = {
        precision: _config(args, precision, tmp_path, None, 1).model.activation_quantization
        for precision in PRECISIONS
    }
    assert forms == {"f32": "none", "bf16": "none", "q8_0": "int8", "q4_1": "int8"}


def test_what_it_prints_is_read_and_it_is_asked_for_the_same_lengths(tmp_path):
    output = json.dumps([TEST])
    file = program(tmp_path, f"echo \"$@\" >> {tmp_path}/asked; echo '{output}'")

    assert bench(file).run(tmp_path / "model.gguf", 40) == Speed(prompt=812.5, decode=812.5)
    prompt, decode = (tmp_path / "asked").read_text().splitlines()
    assert "-t 3 -r 1 -p 256 -n 0 " in prompt
    assert "-t 3 -r 1 -p 0 -n 96 -d 40 " in decode


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("echo 'no such model' >&2; exit 1", "failed: no such model"),
        ("kill -ILL $$", "died: Illegal instruction"),  # built for another CPU
    ],
)
def test_its_failure_is_told(tmp_path, text, told):
    with pytest.raises(ValueError, match=told):
        bench(program(tmp_path, text)).run(tmp_path / "model.gguf", 1)


@pytest.mark.parametrize("output", ["", "[]", "{}", "[1]", json.dumps([TEST, TEST])])
def test_what_is_not_understood_is_told(output):
    with pytest.raises(ValueError, match="unexpected"):
        parse(output)


def test_the_program_given_has_to_be_there(tmp_path):
    with pytest.raises(ValueError, match="is not a file"):
        find_llama_bench(tmp_path / "llama-bench")


def write_source(path):
    writer = GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
    writer.add_tensor("norm", np.ones(64, dtype=np.float32))
    writer.add_tensor("matrix", np.linspace(-1, 1, 4 * 64, dtype=np.float32).reshape(4, 64))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("precision", ["bf16", "q8_0", "q4_1"])
def test_a_file_is_written_in_other_precisions_once(tmp_path, monkeypatch, precision):
    monkeypatch.setenv("ADADECODE_CACHE", str(tmp_path / "cache"))
    source = write_source(tmp_path / "model.gguf")

    file = in_precision(source, precision)
    reader = GGUFReader(file)
    kinds = {tensor.name: tensor.tensor_type for tensor in reader.tensors}
    assert kinds == {
        "norm": GGMLQuantizationType.F32,
        "matrix": GGMLQuantizationType[precision.upper()],
    }
    assert reader.fields["llama.block_count"].contents() == 1
    assert reader.fields["tokenizer.ggml.tokens"].contents() == ["a", "b"]
    written = file.stat().st_mtime_ns
    assert in_precision(source, precision).stat().st_mtime_ns == written


def test_a_file_that_is_in_the_precision_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("ADADECODE_CACHE", str(tmp_path / "cache"))
    source = write_source(tmp_path / "model.gguf")

    assert in_precision(source, "f32") == source


def test_llama_cpp_needs_a_gguf_file(tmp_path):
    with pytest.raises(ValueError, match="not a GGUF file"):
        source_file(str(tmp_path))


@pytest.mark.torch
def test_the_whole_command_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    model = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(model)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"task": "greet", "prompt": "hello"}) + "\n")
    report = tmp_path / "report.json"
    flags = ["--llama-bench", "none", "--precisions", "f32", "--rounds", "2", "--threads", "1"]
    flags += ["--max-tokens", "4", "--prompt-tokens", "8"]
    monkeypatch.setattr(
        "sys.argv",
        ["bench", "peers", str(model), *flags, "--prompts", str(prompts), "--json", str(report)],
    )

    assert main() == 0
    assert "f32: plain / transformers: decode" in capsys.readouterr().out
    runs = {run["contestant"]: run["speeds"] for run in json.loads(report.read_text())["runs"]}
    assert {name: len(speeds) for name, speeds in runs.items()} == {"plain": 2, "transformers": 2}


def test_llama_cpp_cannot_take_part_without_a_file_for_it(tmp_path, monkeypatch, capsys):
    model = write_tiny_llama(tmp_path / "model")
    write_character_tokenizer(model)
    file = program(tmp_path, "exit 1")
    flags = ["--llama-bench", str(file), "--precisions", "f32", "--threads", "1"]
    monkeypatch.setattr("sys.argv", ["bench", "peers", str(model), *flags])

    assert main() == 2
    assert "not a GGUF file" in capsys.readouterr().err
