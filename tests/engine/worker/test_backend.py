"""The choice of kernels: an option of only a CPU or only a GPU is refused elsewhere by name."""

from pathlib import Path

import pytest
import torch
from backends import needs_native
from tiny_model import write_tiny_llama

from engine.config import EngineConfig, ModelConfig
from engine.errors import ModelLoadError
from engine.model.ops.native_ops import NativeOps
from engine.model.ops.torch_ops import TorchOps
from engine.model.spec import ModelSpec
from engine.worker.backend import describe_heads, describe_machine, describe_numbers, select_ops

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda"}, "no CUDA device"),
        ({"device": "cuda", "backend": "native"}, "--backend native"),
        ({"device": "cuda", "quantization": "q4"}, "--quantization q4"),
        ({"device": "cuda", "activation_quantization": "int8"}, "--activation-quantization int8"),
        ({"device": "cuda", "pin_threads": "always"}, "--pin-threads always"),
    ],
)
def test_what_a_gpu_cannot_be_told_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str], message: str
) -> None:
    directory = write_tiny_llama(tmp_path)
    spec = ModelSpec.from_directory(directory)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: len(options) > 1)
    model = ModelConfig(directory=directory, **options)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=message):
        select_ops(EngineConfig(model=model), spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "--dtype bfloat16"),
        ({"quantization": "int8"}, "--quantization int8"),
        ({"activation_quantization": "int8"}, "--activation-quantization int8"),
        ({"pin_threads": "always"}, "--pin-threads always"),
    ],
)
def test_what_torch_cannot_do_on_a_cpu_is_refused(
    tmp_path: Path, options: dict[str, str], message: str
) -> None:
    directory = write_tiny_llama(tmp_path)
    model = ModelConfig(directory=directory, device="cpu", backend="torch", **options)  # type: ignore[arg-type]
    with pytest.raises(ModelLoadError, match=message):
        select_ops(EngineConfig(model=model), ModelSpec.from_directory(directory))


@needs_native
@pytest.mark.parametrize(
    ("options", "weights"),
    [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16"), ({"quantization": "q4"}, "int4")],
)
def test_heads_are_kept_in_8_bits_whatever_the_model_is_kept_in(
    tmp_path: Path, options: dict[str, str], weights: str
) -> None:
    directory = write_tiny_llama(tmp_path)
    model = ModelConfig(directory=directory, device="cpu", backend="native", **options)  # type: ignore[arg-type]
    ops = select_ops(EngineConfig(model=model), ModelSpec.from_directory(directory))
    assert isinstance(ops, NativeOps)
    assert (ops.form.name.lower(), describe_heads(ops)) == (weights, "int8")


@needs_native
@pytest.mark.parametrize("quantization", ["auto", "none"])
def test_activations_are_not_rounded_for_weights_that_are_not(
    tmp_path: Path, quantization: str
) -> None:
    directory = write_tiny_llama(tmp_path)
    model = ModelConfig(
        directory=directory,
        device="cpu",
        quantization=quantization,  # type: ignore[arg-type]
        activation_quantization="int8",
    )
    with pytest.raises(ModelLoadError, match="no weight is quantized"):
        select_ops(EngineConfig(model=model), ModelSpec.from_directory(directory))


@needs_native
def test_more_threads_than_cores_are_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    directory = write_tiny_llama(tmp_path)
    monkeypatch.setattr("engine.worker.backend.usable_cores", lambda: 2)
    for threads in (2, 3):
        assert "--threads" not in caplog.text
        model = ModelConfig(directory=directory, device="cpu", num_threads=threads)
        select_ops(EngineConfig(model=model), ModelSpec.from_directory(directory))
    assert "--threads 3 on 2 cores" in caplog.text


@needs_native
def test_what_is_computed_in_is_described(tmp_path: Path) -> None:
    directory = write_tiny_llama(tmp_path)
    model = ModelConfig(
        directory=directory, device="cpu", quantization="int8", activation_quantization="int8"
    )
    ops = select_ops(EngineConfig(model=model), ModelSpec.from_directory(directory))
    assert describe_numbers(model, ops) == "float32, int8 weights, int8 activations"


def test_what_was_timed_under_another_python_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = EngineConfig(model=ModelConfig(directory="unused"))
    before = describe_machine(config, TorchOps("cpu"))
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    assert describe_machine(config, TorchOps("cpu")) != before
