"""Readings of prompts agree with the whole prompt's logits and have the same bits in any batch."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from backends import form_name, ops_of_every_form
from decoding import Decoding
from tiny_model import StepDriver, load_tiny, sequence_start, write_tiny_llama

from benchmarks.scripted import ScriptedDrafter
from engine.model.decoder import Decoder
from engine.plan import RowPlan, RowResult
from engine.request import TokenLogprobs
from engine.worker.decode_step import DecodeStep
from engine.worker.kv_cache import allocate_cache
from engine.worker.prompt_reader import NotNumbers, PromptReader
from engine.worker.sequence_state import SequenceState

pytestmark = pytest.mark.torch

PROMPTS = {0: [5, 9, 2, 44, 17], 1: [3], 2: [(7 * i) % 90 for i in range(75)], 3: [11, 12] * 20}
Pooling = Literal["mean", "last"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=ops_of_every_form(), ids=form_name)
def decoder(request: pytest.FixtureRequest, directory: Path) -> Decoder:
    return load_tiny(directory, request.param)


class Read:
    """Everything that a run read from prompts."""

    def __init__(self, results: list[RowResult]) -> None:
        self.logprobs: dict[int, list[TokenLogprobs]] = {}
        self.embeddings: dict[int, list[float]] = {}
        for result in results:
            self.logprobs.setdefault(result.sequence_id, []).extend(result.prompt_logprobs)
            if result.embedding is not None:
                assert result.sequence_id not in self.embeddings, "it comes once"
                self.embeddings[result.sequence_id] = result.embedding


def read(
    driver: StepDriver, ids: list[int], pooling: Pooling | None, chunk: int, num_tokens: int = 3
) -> Read:
    starts = [sequence_start(i, PROMPTS[i], num_prompt_logprobs=2, pooling=pooling) for i in ids]
    return Read(driver.generate(starts, num_tokens, chunk=chunk)[1])


def test_log_probabilities_are_those_of_the_whole_prompts_logits(decoder: Decoder) -> None:
    got = read(StepDriver(decoder, 16), list(PROMPTS), None, 64).logprobs
    for i, prompt in PROMPTS.items():
        logprobs = Decoding(decoder, 128).push(prompt).log_softmax(-1)
        assert [entry.token_id for entry in got[i]] == prompt[1:]
        for position, entry in enumerate(got[i]):
            row = logprobs[position]
            best = row.topk(2)
            assert entry.logprob == pytest.approx(float(row[prompt[position + 1]]), abs=1e-5)
            assert [token_id for token_id, _ in entry.top] == best.indices.tolist()
            assert [value for _, value in entry.top] == pytest.approx(
                best.values.tolist(), abs=1e-5
            )
            assert entry.rank == 1 + int((row > row[prompt[position + 1]]).sum())


def test_embeddings_pool_the_normed_states(decoder: Decoder) -> None:
    mean = read(StepDriver(decoder, 16), list(PROMPTS), "mean", 64).embeddings
    last = read(StepDriver(decoder, 16), list(PROMPTS), "last", 64).embeddings
    for i, prompt in PROMPTS.items():
        hidden = Decoding(decoder, 128).push_hidden(prompt)
        scale = (hidden.square().mean(-1, keepdim=True) + decoder.spec.norm_eps).rsqrt()
        normed = hidden * scale * decoder.final_norm
        assert last[i] == pytest.approx(normed[-1].tolist(), abs=1e-4)
        assert mean[i] == pytest.approx(normed.mean(0).tolist(), abs=1e-4)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_chunks_company_and_drafts_change_no_bit(decoder: Decoder, pooling: Pooling) -> None:
    alone = {i: read(StepDriver(decoder, 16), [i], pooling, 64) for i in PROMPTS}
    tokens, _ = StepDriver(decoder, 16).generate(
        [sequence_start(i, prompt) for i, prompt in PROMPTS.items()], 12
    )
    script = {tuple(prompt): tokens[i] for i, prompt in PROMPTS.items()}
    drafter = ScriptedDrafter([1, 3], script, "sometimes", decoder.spec.vocab_size)
    for chunk, some_drafter in ((64, None), (7, drafter), (33, drafter)):
        driver = StepDriver(decoder, 16, some_drafter)
        together = read(driver, list(PROMPTS), pooling, chunk, num_tokens=4)
        for i in PROMPTS:
            assert together.logprobs[i] == alone[i].logprobs[i]
            assert together.embeddings[i] == alone[i].embeddings[i]


def test_logits_exist_for_a_few_positions_at_a_time(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    logits = decoder.logits

    def counting(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(decoder, "logits", counting)
    read(StepDriver(decoder, 16), [2], None, 64, num_tokens=1)
    assert max(sizes) <= 32
    assert sum(sizes) == len(PROMPTS[2])


def test_output_that_is_computed_again_is_no_part_of_an_embedding(decoder: Decoder) -> None:
    prompt = PROMPTS[0]
    asked = sequence_start(0, prompt, pooling="mean")
    again = replace(asked, token_ids=[*prompt, 7, 8])
    expected, actual = (
        Read(StepDriver(decoder, 16).generate([start], 3)[1]) for start in (asked, again)
    )
    assert actual.embeddings == expected.embeddings != {}


@pytest.mark.parametrize(
    ("options", "place", "is_wrong"),
    [
        ({"num_prompt_logprobs": 0}, 1, True),
        ({"num_prompt_logprobs": 0}, 4, False),  # nothing of the prompt follows
        ({"pooling": "mean"}, 1, True),
        ({"pooling": "last"}, 1, False),
        ({"pooling": "last"}, 4, True),
    ],
)
def test_what_is_read_from_states_that_are_no_numbers_is_refused(
    decoder: Decoder, options: dict[str, Any], place: int, is_wrong: bool
) -> None:
    """The last layer may compute one that no other position sees."""
    state = SequenceState(sequence_start(0, PROMPTS[0], **options))
    plan = RowPlan(0, 0, 5, [0], max_draft_tokens=0, is_decoding=True)
    hidden = torch.ones(5, decoder.spec.hidden_size, dtype=decoder.ops.dtype)
    hidden[place] = float("nan")
    with pytest.raises(NotNumbers) if is_wrong else nullcontext():
        PromptReader(decoder).read(plan, state, hidden)


@pytest.mark.parametrize("options", [{"num_prompt_logprobs": 0}, {"pooling": "last"}])
def test_what_is_not_a_number_is_that_rows_error(directory: Path, options: dict[str, Any]) -> None:
    decoder = load_tiny(directory, ops_of_every_form()[0])
    clean = read(StepDriver(decoder, 16), [0], None, 64)
    poison = 96
    cache = allocate_cache(decoder.spec, 8, 16, dtype=torch.float32, device=torch.device("cpu"))
    step = DecodeStep(decoder, cache, 16)
    embed = decoder.embed

    def poisoned(token_ids: torch.Tensor) -> torch.Tensor:
        hidden = embed(token_ids).clone()
        hidden[token_ids == poison] = float("nan")
        return hidden

    decoder.embed = poisoned  # type: ignore[method-assign]
    prompts = {7: [poison, 4, 4], 8: PROMPTS[0]}
    states = [
        SequenceState(sequence_start(i, prompt, **{"num_prompt_logprobs": 2} | options))
        for i, prompt in prompts.items()
    ]
    plans = [
        RowPlan(
            sequence_id=i,
            start=0,
            num_tokens=len(prompt),
            block_table=[i - 7],
            max_draft_tokens=0,
            is_decoding=False,
        )
        for i, prompt in prompts.items()
    ]
    with torch.inference_mode():
        bad, good = step.run(plans, states)
    assert bad.error is not None
    assert good.error is None
    assert [entry.logprob for entry in good.prompt_logprobs] == [
        entry.logprob for entry in clean.logprobs[0]
    ]
