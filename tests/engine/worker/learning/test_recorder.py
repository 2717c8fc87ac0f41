"""What is recorded depends on the committed tokens, not on how they were drafted."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pytest
import torch
from decoding import Decoding
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
from engine.worker.learning.unit_rms import unit_rms
from engine.worker.segment_runner import EagerRunner, NewestTokens, SegmentRunner

pytestmark = pytest.mark.torch

EXITS, COLUMNS = [1, 3], 40
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


class Recording:
    """Two sequences, decoded plainly and recorded for heads with a reduced vocabulary."""

    PROMPTS = ([5, 9, 2, 44], [7, 8])

    def __init__(self, directory: Path) -> None:
        decoder = load_tiny(write_tiny_llama(directory), TorchOps("cpu"))
        self.token_ids = random_heads(decoder, EXITS, COLUMNS).token_ids.tolist()
        self.examples = Examples(len(EXITS), HIDDEN, COLUMNS + 1, torch.device("cpu"))
        self.observed: list[int] = []
        self.recorder = Recorder(
            self.examples,
            random_heads(decoder, EXITS, COLUMNS),
            lambda row, _: self.observed.append(row.state.sequence_id),
            clock=count().__next__,
        )
        drafter = ScriptedDrafter(EXITS, {}, "never", VOCAB)
        self.decoder = decoder
        self._driver = StepDriver(decoder, 16, drafter, recorder=self.recorder)

    def decode(self, num_tokens: int, chunk: int) -> dict[int, list[int]]:
        """Return all tokens of each sequence."""
        starts = [sequence_start(i, prompt) for i, prompt in enumerate(self.PROMPTS)]
        return self._driver.generate(starts, num_tokens, chunk=chunk, max_draft_tokens=0)[0]


def test_examples_hold_the_models_own_states_and_what_it_expects(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    tokens = made.decode(40, chunk=3)  # the first prompt takes two steps
    assert made.examples.num_written > 40
    newest: dict[int, int] = {}  # serial number of each sequence's newest example
    expected = {}
    for i, ids in tokens.items():
        hidden = Decoding(made.decoder, 64).push_hidden(ids)
        expected[i] = unit_rms(hidden), made.decoder.logits(hidden)[:, made.token_ids].softmax(-1)
    places = {i: len(prompt) - 1 for i, prompt in enumerate(made.PROMPTS)}
    # The second sequence has a token from the first step on, the first from the next one.
    order = [1, *[0, 1] * 40]
    for serial, i in zip(range(made.examples.num_written), order, strict=False):
        place, here = places[i], torch.tensor([serial])
        last, probs = expected[i]
        follower = tokens[i][place + 1]
        is_known = follower in made.token_ids
        column = made.token_ids.index(follower) if is_known else COLUMNS
        assert made.examples.targets(here) == column
        assert torch.allclose(made.examples.last(here)[0], last[place], atol=2e-3)
        wanted = torch.zeros(COLUMNS + 1)
        wanted[:COLUMNS] = probs[place] if is_known else 0.0
        wanted[COLUMNS] = 0.0 if is_known else 1.0
        assert torch.allclose(made.examples.probs(here)[0], wanted, atol=2e-3)
        assert made.examples._before[serial] == newest.get(i, -1)
        newest[i], places[i] = serial, place + 1


def test_recording_takes_its_time_and_shows_every_row(tmp_path: Path) -> None:
    """Every reading of the clock takes a second here."""
    made = Recording(tmp_path)
    made.decode(2, chunk=4)
    assert made.observed == [0, 1] * 2
    assert (made.recorder.take_seconds(), made.recorder.take_seconds()) == (2.0, 0.0)


def test_while_it_is_closed_nothing_is_recorded(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    made.recorder.is_open = False
    made.decode(40, chunk=4)
    assert not made.recorder.is_broken
    assert made.examples.num_written == 0


def test_of_sequences_that_ended_nothing_is_kept(tmp_path: Path) -> None:
    made = Recording(tmp_path)
    for _ in range(3):
        made.decode(2, chunk=4)
    assert len(made.recorder._newest) == len(made.PROMPTS)


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
