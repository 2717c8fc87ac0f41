"""What is recorded depends on the committed tokens, not on how they were drafted."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_model import (
    HIDDEN,
    VOCAB,
    StepDriver,
    load_tiny,
    random_heads,
    sequence_start,
    write_tiny_llama,
)
from torch import Tensor

from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.model.ops.interface import LayerCache
from engine.model.ops.torch_ops import TorchOps
from engine.worker.decode_step import split_layers
from engine.worker.learning.examples import Examples
from engine.worker.learning.recorder import Recorder
from engine.worker.segment_runner import EagerRunner, NewestTokens, SegmentRunner

pytestmark = pytest.mark.torch

EXITS = [1, 3]
PROMPT = [5, 9, 2, 44]
NUM_TOKENS = 40
NUM_EXAMPLES = 32  # the first ones, which are compared; later positions may still be gathering


def test_drafts_and_alternates_leave_the_same_examples(tmp_path: Path) -> None:
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    heads = random_heads(decoder, EXITS, VOCAB)
    start = sequence_start(0, PROMPT, temperature=0.8)
    plain, _ = StepDriver(decoder, 16).generate([start], NUM_TOKENS)

    def examples_of(agreement: Agreement) -> Examples:
        examples = Examples(len(EXITS), HIDDEN, VOCAB + 1, torch.device("cpu"))
        recorder = Recorder(examples, heads, observe=lambda row, result: None)
        drafter = ScriptedDrafter(EXITS, {tuple(PROMPT): plain[0]}, agreement, VOCAB)
        driver = StepDriver(decoder, 16, drafter, recorder=recorder)
        driver.generate([start], NUM_TOKENS)
        assert not recorder.is_broken
        assert examples.num_written >= NUM_EXAMPLES
        return examples

    expected = examples_of("never")
    agreements: tuple[Agreement, ...] = ("always", "sometimes", "aside")
    for agreement in agreements:
        actual = examples_of(agreement)
        for part in ("_exits", "_last", "_probs", "_targets", "_before"):
            ours, theirs = getattr(actual, part), getattr(expected, part)
            if part == "_exits":
                ours, theirs = ours.transpose(0, 1), theirs.transpose(0, 1)
            assert torch.equal(ours[:NUM_EXAMPLES], theirs[:NUM_EXAMPLES]), (agreement, part)


def test_recording_sends_a_gpu_nothing_that_it_would_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An index that is a list would be sent by a copy from ordinary memory."""
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    examples = Examples(len(EXITS), HIDDEN, VOCAB + 1, torch.device("cpu"))
    heads = random_heads(decoder, EXITS, VOCAB)
    recorder = Recorder(examples, heads, observe=lambda row, result: None)
    drafter = ScriptedDrafter(EXITS, {}, "never", VOCAB)
    lists: list[object] = []
    get = Tensor.__getitem__

    def indexed(tensor: Tensor, index: object) -> Tensor:
        if isinstance(index, list):
            lists.append(index)
        return get(tensor, index)

    monkeypatch.setattr(Tensor, "__getitem__", indexed)
    driver = StepDriver(decoder, 16, drafter, recorder=recorder)
    driver.generate([sequence_start(0, PROMPT)], 4, max_draft_tokens=0)
    assert not recorder.is_broken
    assert lists == []


def test_once_nothing_is_recorded_any_more_passes_are_whole_again(tmp_path: Path) -> None:
    decoder = load_tiny(write_tiny_llama(tmp_path), TorchOps("cpu"))
    examples = Examples(len(EXITS), HIDDEN, VOCAB + 1, torch.device("cpu"))
    heads = random_heads(decoder, EXITS, VOCAB)
    recorder = Recorder(examples, heads, observe=lambda row, result: None)
    asked: list[int] = []

    class Runner(EagerRunner):
        def run_through(self, tokens: NewestTokens) -> None:
            asked.append(len(tokens.places))

    def make_runner(cache: Sequence[LayerCache]) -> SegmentRunner:
        return Runner(decoder, split_layers(6, EXITS), cache)

    drafter = ScriptedDrafter(EXITS, {}, "never", VOCAB)
    driver = StepDriver(decoder, 16, drafter, make_runner=make_runner, recorder=recorder)
    start = sequence_start(0, PROMPT)
    driver.generate([start], 4, max_draft_tokens=0)
    assert not asked, "every position is to be seen at the exits"
    recorder.is_open, recorder.is_broken = False, True
    driver.generate([start], 4, max_draft_tokens=0)
    assert asked
