"""Early exits never change a token.

Outputs with drafts equal outputs without them, for different exits, agreements, temperatures,
batches, chunks, block sizes and draft lengths, and with untrained heads under the real policy.

Every second combination of settings is run, so that any two settings are combined on every backend,
and any three on some; `make full` runs all.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from backends import form_name, ops_of_every_form
from full_size import FULL_SIZE
from tiny_model import (
    StepDriver,
    load_tiny,
    policy_drafter,
    random_heads,
    sequence_start,
    write_tiny_llama,
)

from benchmarks.scripted import Agreement, ScriptedDrafter
from engine.model.decoder import Decoder
from engine.plan import RowResult

pytestmark = pytest.mark.torch

PROMPTS = {
    0: [5, 9, 2, 44, 17],
    1: [3],
    2: list(range(20, 60)),
    3: [11, 12, 13, 11, 12, 13, 11],
    4: [90, 1, 90],
}
SAMPLING = {
    "greedy": {},
    "sampled": {"temperature": 0.8},
    "hot": {"temperature": 1.5, "top_p": 0.9, "top_k": 40, "min_p": 0.01},
    "processors": {
        "temperature": 0.7,
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "presence_penalty": 0.4,
        "logit_bias": {3: 2.0, 50: -4.0},
        "min_tokens": 8,
        "stop_token_ids": [0, 5],
    },
    "greedy processors": {
        "repetition_penalty": 1.5,
        "frequency_penalty": 0.9,
        "num_logprobs": 3,
        "allowed_token_ids": list(range(0, 97, 2)),
    },
}
NUM_TOKENS = 40
AGREEMENTS: tuple[Agreement, ...] = ("always", "never", "sometimes", "aside")
# Exit layers, block size, prompt tokens per chunk, draft length.
SHAPES = (
    ([1], 16, 64, 5),
    ([0, 3], 4, 7, 5),
    ([2, 3, 5], 8, 3, 3),
    ([1, 2, 3, 4, 5], 16, 64, 9),
)
THRESHOLDS = (None, 0.0, 0.05, 0.5)
BACKENDS = ops_of_every_form()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=BACKENDS, ids=form_name)
def decoder(request: pytest.FixtureRequest, directory: Path) -> Decoder:
    return load_tiny(directory, request.param)


class Plain:
    """The output of every prompt alone, without drafts, computed once per sampling."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._kept: dict[str, dict[int, list[int]]] = {}

    def outputs(self, sampling: str) -> dict[int, list[int]]:
        """Return prompt and output by sequence id."""
        if sampling not in self._kept:
            tokens: dict[int, list[int]] = {}
            for i, prompt in PROMPTS.items():
                start = sequence_start(i, prompt, **SAMPLING[sampling])
                tokens |= StepDriver(self._decoder, block_size=16).generate([start], NUM_TOKENS)[0]
            self._kept[sampling] = tokens
        return self._kept[sampling]


@pytest.fixture(scope="module")
def plain(decoder: Decoder) -> Plain:
    return Plain(decoder)


def scripted(
    decoder: Decoder, exit_layers: list[int], plain: dict[int, list[int]], agreement: Agreement
) -> ScriptedDrafter:
    script = {tuple(prompt): plain[i] for i, prompt in PROMPTS.items()}
    return ScriptedDrafter(exit_layers, script, agreement, decoder.spec.vocab_size)


def is_run(*settings: int) -> bool:
    """Whether to run a combination, given the index of each setting among its kind."""
    return FULL_SIZE or sum(settings) % 2 == 0


def has_alternates(results: Sequence[RowResult]) -> bool:
    """Whether any place had two candidates."""
    places = [[draft.place for draft in result.drafts] for result in results]
    return any(len(set(each)) < len(each) for each in places)


def takes_alternates(results: Sequence[RowResult]) -> bool:
    """Whether the second candidate for a place was accepted."""
    return any(
        {d.place for d in result.drafts if d.accepted}
        & {d.place for d in result.drafts if not d.accepted}
        for result in results
    )


@pytest.mark.parametrize("agreement", AGREEMENTS)
@pytest.mark.parametrize("sampling", SAMPLING)
def test_scripted_drafts_change_nothing(
    decoder: Decoder, plain: Plain, sampling: str, agreement: Agreement
) -> None:
    expected = plain.outputs(sampling)
    starts = [sequence_start(i, prompt, **SAMPLING[sampling]) for i, prompt in PROMPTS.items()]
    here = (
        BACKENDS.index(decoder.ops),
        list(SAMPLING).index(sampling),
        AGREEMENTS.index(agreement),
    )
    for number, (exit_layers, block_size, chunk, length) in enumerate(SHAPES):
        if not is_run(number, *here):
            continue
        drafter = scripted(decoder, exit_layers, expected, agreement)
        driver = StepDriver(decoder, block_size, drafter)
        tokens, results = driver.generate(starts, NUM_TOKENS, chunk=chunk, max_draft_tokens=length)
        # The script ends where the plain run did; the last step may go further.
        assert {i: t[: len(expected[i])] for i, t in tokens.items()} == expected
        drafts = [draft for result in results for draft in result.drafts]
        assert drafts, "a test without drafts proves nothing"
        accepted = sum(draft.accepted for draft in drafts)
        assert (accepted == len(drafts)) if agreement == "always" else (accepted < len(drafts))
        assert (accepted == 0) or agreement != "never"
        assert has_alternates(results) == (agreement != "always")
        assert takes_alternates(results) == (agreement in ("sometimes", "aside"))


@pytest.mark.parametrize("sampling", SAMPLING)
def test_logprobs_are_equal_to_the_bit(decoder: Decoder, plain: Plain, sampling: str) -> None:
    options = SAMPLING[sampling] | {"num_logprobs": 2}
    starts = [sequence_start(i, prompt, **options) for i, prompt in PROMPTS.items()]
    _, plain_results = StepDriver(decoder, 16).generate(starts, NUM_TOKENS)
    drafter = scripted(decoder, [1, 3], plain.outputs(sampling), "sometimes")
    _, results = StepDriver(decoder, 16, drafter).generate(starts, NUM_TOKENS)
    assert takes_alternates(results)
    for i in PROMPTS:
        expected = [x for r in plain_results if r.sequence_id == i for x in r.logprobs]
        got = [x for r in results if r.sequence_id == i for x in r.logprobs]
        assert got == expected


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("sampling", ["greedy", "sampled"])
def test_untrained_heads_change_nothing(
    decoder: Decoder, plain: Plain, sampling: str, threshold: float | None
) -> None:
    expected = plain.outputs(sampling)
    options = SAMPLING[sampling] | {"threshold": threshold}
    starts = [sequence_start(i, prompt, **options) for i, prompt in PROMPTS.items()]
    sizes = [(20, 32), (97, 0)]  # of the reduced vocabulary and of the refinement
    every = itertools.product(enumerate(([0], [1, 3], [0, 2, 5])), enumerate(sizes))
    here = (list(SAMPLING).index(sampling), THRESHOLDS.index(threshold))
    for (exits, exit_layers), (number, (size, refined)) in every:
        if not is_run(exits, number, *here):
            continue
        drafter = policy_drafter(decoder, random_heads(decoder, exit_layers, size, refined))
        tokens, results = StepDriver(decoder, 16, drafter).generate(starts, NUM_TOKENS)
        assert tokens == expected
        if threshold is None and sampling == "greedy":  # what is sampled may leave none likely
            assert has_alternates(results)
        if threshold == 0.0:
            assert any(result.drafts for result in results)
