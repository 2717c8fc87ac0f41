"""Weights and configuration read from GGUF files equal what was written to them."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import load_file
from tiny_gguf import HEAD_SIZE, TOKENS, TinyGguf, write_tiny_gguf

from engine.checkpoint import gguf_convert, gguf_tensors
from engine.checkpoint.directory import has_blocks
from engine.checkpoint.gguf_convert import convert_gguf
from engine.errors import ModelLoadError, UnsupportedArchitecture
from engine.model.block_weight import BlockWeight
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader

pytestmark = pytest.mark.torch

_QUANTIZATIONS = [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.F16, Kind.BF16]


class _NoTokenizer:
    """A stand-in for the tokenizer's conversion, which has a test of its own."""

    def __init__(self, file: Path, directory: Path) -> None:
        pass

    def finish(self) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture(autouse=True)
def without_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_convert, "TokenizerConversion", _NoTokenizer)


def _converted(tmp_path: Path, tiny: TinyGguf) -> tuple[Path, dict[str, np.ndarray]]:
    weights = write_tiny_gguf(tmp_path / "tiny.gguf", tiny)
    directory = tmp_path / "converted"
    directory.mkdir()
    convert_gguf(tmp_path / "tiny.gguf", directory, lambda text, fraction: None)
    return directory, weights


def _assert_same(directory: Path, weights: dict[str, np.ndarray]) -> None:
    converted = load_file(directory / "model.safetensors")
    assert set(converted) == set(weights)
    for name, weight in weights.items():
        np.testing.assert_array_equal(converted[name].float().numpy(), weight, err_msg=name)
    reader = WeightReader(directory, ModelSpec.from_directory(directory))
    assert reader.fingerprint()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", [Kind.F32, Kind.Q8_0])
def test_families(tmp_path: Path, family: str, quantization: Kind) -> None:
    tiny = TinyGguf(family=family, quantization=quantization, is_tied=family == "llama")
    directory, weights = _converted(tmp_path, tiny)
    _assert_same(directory, weights)
    spec = ModelSpec.from_directory(directory)
    assert spec.architecture.lower().startswith(family)
    assert (spec.qkv_bias, spec.qk_norm) == (family == "qwen2", family == "qwen3")
    assert spec.eos_token_ids == (len(TOKENS) - 1,)
    assert spec.norm_eps == 1e-5


@pytest.mark.parametrize("quantization", _QUANTIZATIONS, ids=lambda kind: kind.name)
def test_quantizations(tmp_path: Path, quantization: Kind) -> None:
    directory, weights = _converted(tmp_path, TinyGguf(quantization=quantization))
    _assert_same(directory, weights)
    dtype = {Kind.F16: "float16", Kind.BF16: "bfloat16"}.get(quantization, "float32")
    assert ModelSpec.from_directory(directory).dtype == dtype


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # llama reorders rows of Q and K
@pytest.mark.parametrize("quantization", [Kind.Q8_0, Kind.Q4_0, Kind.Q4_1], ids=lambda k: k.name)
def test_blocks_stand_for_the_same_values(tmp_path: Path, family: str, quantization: Kind) -> None:
    directory, weights = _converted(tmp_path, TinyGguf(family=family, quantization=quantization))
    reader = WeightReader(directory, ModelSpec.from_directory(directory), keep_blocks=True)
    num_blocks = 0
    for name, weight in weights.items():
        taken = reader.take_matrix(name)
        num_blocks += isinstance(taken, BlockWeight)
        values = taken.dequantize() if isinstance(taken, BlockWeight) else taken.float()
        np.testing.assert_array_equal(values.numpy(), weight, err_msg=name)
    assert num_blocks > 0
    reader.finish()


def test_no_blocks_where_nothing_is_quantized(tmp_path: Path) -> None:
    directory, _ = _converted(tmp_path, TinyGguf(quantization=Kind.Q5_0))
    assert not has_blocks(directory)


def test_pieces_join_seamlessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_tensors, "_CHUNK_ELEMENTS", 1000)
    _assert_same(*_converted(tmp_path, TinyGguf(quantization=Kind.Q5_1)))


def test_rope_factors_survive(tmp_path: Path) -> None:
    factors = tuple(1.0 + 0.5 * index for index in range(HEAD_SIZE // 2))
    directory, _ = _converted(tmp_path, TinyGguf(rope_factors=factors))
    assert ModelSpec.from_directory(directory).rope.frequency_factors == factors


def test_sliding_window_makes_it_mistral(tmp_path: Path) -> None:
    tiny = TinyGguf(metadata=(("attention.sliding_window", 8),))
    directory, weights = _converted(tmp_path, tiny)
    _assert_same(directory, weights)
    spec = ModelSpec.from_directory(directory)
    assert (spec.architecture, spec.sliding_window) == ("MistralForCausalLM", (8, 8))


def test_yarn_scaling(tmp_path: Path) -> None:
    directory, _ = _converted(tmp_path, TinyGguf(family="qwen2", metadata=YARN))
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["factor"]) == ("yarn", 4.0)
    assert rope["original_max_position_embeddings"] == 32


YARN = (
    ("rope.scaling.type", "yarn"),
    ("rope.scaling.factor", 4.0),
    ("rope.scaling.original_context_length", 32),
)


@pytest.mark.parametrize(
    ("more", "attention_factor"),
    [
        ((), 1 + 0.1 * math.log(4)),
        ((("rope.scaling.attn_factor", 0.5),), 0.5 * (1 + 0.1 * math.log(4))),
        ((("rope.scaling.attn_factor", 0.5), ("rope.scaling.factor", 1.0)), 0.5),
    ],
)
def test_yarns_attention_is_scaled_as_in_llama_cpp(
    tmp_path: Path, more: tuple[tuple[str, float], ...], attention_factor: float
) -> None:
    metadata = tuple((dict(YARN) | dict(more)).items())
    directory, _ = _converted(tmp_path, TinyGguf(family="qwen2", metadata=metadata))
    rope = ModelSpec.from_directory(directory).rope
    assert rope.attention_factor == pytest.approx(attention_factor)


def test_yarns_ramp_is_the_files(tmp_path: Path) -> None:
    ramp = (("rope.scaling.yarn_beta_fast", 16.0), ("rope.scaling.yarn_beta_slow", 2.0))
    directory, _ = _converted(tmp_path, TinyGguf(metadata=(*YARN, *ramp)))
    rope = ModelSpec.from_directory(directory).rope
    assert (rope.beta_fast, rope.beta_slow) == (16.0, 2.0)


@pytest.mark.parametrize(
    "metadata",
    [
        (*YARN, ("rope.scaling.yarn_attn_factor", 1.0)),
        (*YARN, ("rope.scaling.yarn_ext_factor", 0.5)),
        (*YARN, ("rope.scaling.yarn_log_multiplier", 0.1)),
        (("rope.scaling.attn_factor", 0.5),),
    ],
)
def test_scaling_of_an_unclear_meaning_is_refused_by_name(
    tmp_path: Path, metadata: tuple[tuple[str, object], ...]
) -> None:
    with pytest.raises(ModelLoadError, match=metadata[-1][0]):
        _converted(tmp_path, TinyGguf(metadata=metadata))


@pytest.mark.parametrize("key", ["rope.scaling.factor", "rope.scale_linear"])
def test_scaling_without_a_type_is_linear(tmp_path: Path, key: str) -> None:
    directory, _ = _converted(tmp_path, TinyGguf(metadata=((key, 4.0),)))
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    assert (rope["rope_type"], rope["factor"]) == ("linear", 4.0)


@pytest.mark.parametrize("family", ["gemma2", "phi3"])
def test_other_families_are_refused_by_name(tmp_path: Path, family: str) -> None:
    with pytest.raises(UnsupportedArchitecture, match=f"{family}.*llama, mistral, qwen2, qwen3"):
        _converted(tmp_path, TinyGguf(family=family))


def test_experts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="experts"):
        _converted(tmp_path, TinyGguf(metadata=(("expert_count", 8),)))


def test_files_with_wrong_bytes_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyGguf())
    whole = (tmp_path / "tiny.gguf").read_bytes()
    chances = random.Random(0)
    num_refused = 0
    for number in range(80):
        content = bytearray(whole)
        for _ in range(chances.choice((1, 2, 4))):
            content[chances.randrange(6000)] = chances.choice((0, 1, 127, 255))
        (tmp_path / "wrong.gguf").write_bytes(content)
        directory = tmp_path / str(number)
        directory.mkdir()
        try:
            convert_gguf(tmp_path / "wrong.gguf", directory, lambda text, fraction: None)
        except ModelLoadError:
            num_refused += 1
        shutil.rmtree(directory)
    assert 0 < num_refused < 80


@pytest.mark.parametrize("keep", [0, 3, 100, 20_000])
def test_damaged_files_are_refused(tmp_path: Path, keep: int) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf", TinyGguf())
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((tmp_path / "tiny.gguf").read_bytes()[:keep])
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelLoadError, match="damaged"):
        convert_gguf(damaged, tmp_path / "out", lambda text, fraction: None)
