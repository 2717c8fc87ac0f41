"""A step waits for the device once per evaluation of an exit, once for the tokens, and once for
log-probabilities. It sends what an evaluation or a choice needs in one piece, and nothing that it
sends makes it wait.
"""

import ast
import importlib
import pkgutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import (
    VOCAB,
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)
from torch import Tensor
from xgrammar import GrammarMatcher

import engine.worker
from engine.grammar.compiler import GrammarCompiler
from engine.model.ops.torch_ops import TorchOps
from engine.plan import SequenceStart
from engine.request import Structure
from engine.worker import upload as upload_module
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.structure import StructureState
from engine.worker.upload import send, upload, upload_all

pytestmark = pytest.mark.torch

_READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__")
_ALL = {
    "temperature": 0.8,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.01,
    "repetition_penalty": 1.2,
    "frequency_penalty": 0.3,
    "logit_bias": {3: 1.0},
    "min_tokens": 4,
    "stop_token_ids": [0],
    "num_logprobs": 2,
}


class Reads:
    """Counts what the worker's code reads from tensors."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for name in _READS:
            monkeypatch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))

    def _counting(self, name: str, real: Any) -> Any:
        def read(tensor: Tensor, *args: Any, **options: Any) -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            if caller.startswith("engine.worker"):
                self.counts[f"{caller}.{name}"] += 1
            return real(tensor, *args, **options)

        return read


class Sends:
    """Counts what the worker's code sends, by the function that sends it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[str] = Counter()
        for module in pkgutil.walk_packages(engine.worker.__path__, "engine.worker."):
            for name, value in list(vars(importlib.import_module(module.name)).items()):
                is_upload = getattr(value, "__module__", None) == upload_module.__name__
                if is_upload and module.name != upload_module.__name__:
                    monkeypatch.setattr(f"{module.name}.{name}", self._counting(value))

    def _counting(self, real: Any) -> Any:
        def sent(*args: Any) -> Any:
            caller = sys._getframe(1)
            self.counts[f"{caller.f_globals['__name__']}.{caller.f_code.co_name}"] += 1
            return real(*args)

        return sent


def open_letters(start: SequenceStart) -> StructureState:
    """Return a structure that allows half of the tiny model's tokens."""
    vocabulary = [*(bytes([30 + i]) for i in range(VOCAB - 1)), b""]
    grammar = GrammarCompiler(vocabulary, [VOCAB - 1]).compile(
        Structure(kind="regex", source="[A-Za-z]*")
    )
    output = start.token_ids[start.num_prompt_tokens :]
    return StructureState(GrammarMatcher(grammar), VOCAB, [VOCAB - 1], output)


@pytest.mark.parametrize("has_structure", [False, True], ids=["free", "structured"])
@pytest.mark.parametrize("options", [{}, _ALL], ids=["greedy", "everything"])
def test_a_step_reads_once_per_evaluation_and_once_at_its_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, object],
    has_structure: bool,
) -> None:
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    drafter = policy_drafter(decoder, random_heads(decoder, [2, 4], VOCAB), threshold=0.0)
    driver = StepDriver(decoder, 16, drafter, open_letters if has_structure else None)
    starts = [sequence_start(i, [5 + i, 9, 2], **options) for i in range(3)]
    num_excluded = []
    real_exclude = TorchOps.exclude

    def exclude(self: TorchOps, *args: Any) -> None:
        num_excluded.append(len(args[1]))
        real_exclude(self, *args)

    monkeypatch.setattr(TorchOps, "exclude", exclude)
    evaluations, steps = [], []
    real_opinions, real_run = ExitEvaluator.opinions, DecodeStep.run

    def opinions(self: ExitEvaluator, *args: Any) -> Any:
        evaluations.append(1)
        return real_opinions(self, *args)

    def run(self: DecodeStep, *args: Any) -> Any:
        steps.append(1)
        return real_run(self, *args)

    monkeypatch.setattr(ExitEvaluator, "opinions", opinions)
    monkeypatch.setattr(DecodeStep, "run", run)
    reads, sends = Reads(monkeypatch), Sends(monkeypatch)

    _, results = driver.generate(starts, 8)

    assert sum(len(result.drafts) for result in results) > 0
    num_reads = reads.counts.pop("engine.worker.sampler.tolist")
    num_reads += reads.counts.pop("engine.worker.verifier.tolist", 0)  # of plain steps
    assert num_reads == len(evaluations) + len(steps)
    logprobs = {"engine.worker.logprobs.tolist": len(steps)} if "num_logprobs" in options else {}
    assert reads.counts == logprobs
    if options:
        assert sends.counts["engine.worker.sampler.expect"] == len(evaluations)
        assert sends.counts["engine.worker.sampler.choose"] == len(steps)
    else:  # greedy rows send nothing but the drafts that follow
        assert sends.counts["engine.worker.sampler.expect"] < len(evaluations)
        assert sends.counts["engine.worker.sampler.choose"] == 0
    assert len(num_excluded) == (len(evaluations) + len(steps) if has_structure else 0)
    if has_structure:
        assert max(num_excluded) > 3, "the masks of all rows and of all their drafts together"


def test_no_list_goes_to_the_device_but_through_upload() -> None:
    """`torch.tensor(…, device=…)` waits for everything launched before."""
    found = {
        path.name
        for path in Path(engine.worker.__path__[0]).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "torch.tensor"
        and any(keyword.arg == "device" for keyword in node.keywords)
    }
    assert found == set()


def test_what_is_uploaded_to_a_gpu_is_pinned_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moved = []

    class Pinned:
        def to(self, device: torch.device, *, non_blocking: bool) -> str:
            moved.append((device.type, non_blocking))
            return "there"

    gpu = torch.device("cuda")
    monkeypatch.setattr(Tensor, "pin_memory", lambda _: Pinned())
    assert upload([1], torch.int64, gpu) == "there"
    assert send(torch.zeros(1), gpu) == "there"
    assert moved == [("cuda", True)] * 2


def test_lists_go_to_a_gpu_as_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    lists = [([1, -(2**63), 2**63 - 1], torch.int64), ([0.5], torch.float32), ([], torch.int64)]
    lists += [([7, 8], torch.int32)]
    expected = [torch.tensor(values, dtype=dtype) for values, dtype in lists]
    moved = []

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        moved.append((device.type, non_blocking))
        return tensor.clone()

    here = upload_all(lists, torch.device("cpu"))
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
    monkeypatch.setattr(Tensor, "to", to)
    there = upload_all(lists, torch.device("cuda"))
    assert moved == [("cuda", True)]
    for mine, other, wanted in zip(here, there, expected, strict=True):
        assert mine.dtype is other.dtype is wanted.dtype
        assert mine.equal(wanted)
        assert other.equal(wanted)
        assert other.storage_offset() * other.itemsize % 16 == 0, "as a tensor of its own would lie"
