"""Processors do what their names say, on the full and on a reduced vocabulary, for each row."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny_model import sequence_start
from torch import Tensor

from engine.model.ops.torch_ops import TorchOps
from engine.worker.sample_point import ReducedVocabulary, SamplePoint
from engine.worker.sampler import Sampler
from engine.worker.sequence_state import SequenceState
from engine.worker.token_bits import TokenBits, token_bits

pytestmark = pytest.mark.torch

VOCAB = 12


def point(
    output: list[int] | None = None, drafts: list[int] | None = None, **options: object
) -> SamplePoint:
    state = SequenceState(sequence_start(1, [1, 2, 3], **options))
    state.append(output or [])
    return SamplePoint(state, drafts or [])


def chosen(sampler: Sampler, logits: Tensor, points: list[SamplePoint]) -> list[int]:
    return sampler.choose(sampler.scores(logits, points), points).tolist()


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(TorchOps("cpu"))


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(1))


def test_neutral_parameters_leave_logits_alone(sampler: Sampler, logits: Tensor) -> None:
    assert sampler.scores(logits, [point()]) is logits


@pytest.mark.parametrize(("frequency", "presence"), [(0.5, 0.25), (0.5, 0.0), (0.0, 0.25)])
def test_frequency_and_presence_count_output_and_drafts_only(
    sampler: Sampler, logits: Tensor, frequency: float, presence: float
) -> None:
    given = {"frequency_penalty": frequency, "presence_penalty": presence}
    change = sampler.scores(logits, [point([4, 4], [4, 5], **given)]) - logits
    assert change[0, 4] == pytest.approx(-(3 * frequency + presence))
    assert change[0, 5] == pytest.approx(-(frequency + presence))
    assert change[0, 1] == 0, "the prompt is not counted"


def test_repetition_counts_the_prompt_too(sampler: Sampler) -> None:
    logits = torch.tensor([[2.0, 2.0, -2.0] + [0.0] * 9])
    scores = sampler.scores(logits, [point(repetition_penalty=2.0)])
    assert scores[0, :3].tolist() == [2.0, 1.0, -4.0]


def test_logit_bias_and_min_tokens(sampler: Sampler, logits: Tensor) -> None:
    masked = point([4], logit_bias={7: 3.0}, min_tokens=3, stop_token_ids=[0, 9])
    scores = sampler.scores(logits, [masked])
    assert scores[0, 7] == pytest.approx(float(logits[0, 7]) + 3)
    assert scores[0, 0] == scores[0, 9] == float("-inf")
    enough = point([4], [4, 4], logit_bias={7: 3.0}, min_tokens=3, stop_token_ids=[0, 9])
    assert torch.isfinite(sampler.scores(logits, [enough])).all(), "drafts count towards min_tokens"


def test_min_tokens_alone_changes_logits_until_there_are_enough(
    sampler: Sampler, logits: Tensor
) -> None:
    short, enough = (point(output, min_tokens=2, stop_token_ids=[9]) for output in ([4], [4, 4]))
    assert sampler.scores(logits, [short])[0, 9] == float("-inf")
    assert sampler.scores(logits, [enough]) is logits


def kept(scores: Tensor) -> set[int]:
    return set(torch.isfinite(scores[0]).nonzero().flatten().tolist())


def test_only_allowed_tokens_are_left(sampler: Sampler, logits: Tensor) -> None:
    scores = sampler.scores(logits, [point(allowed_token_ids=[2, 7], logit_bias={7: 1.0})])
    assert kept(scores) == {2, 7}
    assert scores[0, 2] == logits[0, 2]
    assert scores[0, 7] == logits[0, 7] + 1


@pytest.mark.parametrize(("allowed", "left"), [([2, 9], {2}), ([9], {9}), ([0, 9], {0, 9})])
def test_min_tokens_puts_no_end_off_where_nothing_else_is_allowed(
    sampler: Sampler, logits: Tensor, allowed: list[int], left: set[int]
) -> None:
    short = point(allowed_token_ids=allowed, min_tokens=3, stop_token_ids=[0, 9])
    assert kept(sampler.scores(logits, [short])) == left


def test_a_structure_decides_by_itself_what_min_tokens_puts_off(
    sampler: Sampler, logits: Tensor
) -> None:
    short = point(min_tokens=3, stop_token_ids=[0, 9])
    allowed = token_bits([9], VOCAB)  # its end, as nothing else may follow
    structure = SimpleNamespace(vocab_size=VOCAB, allowed=lambda *_, **__: allowed)
    short.state.structure = structure  # type: ignore[assignment]
    assert kept(sampler.scores(logits, [short])) == {9}


@pytest.mark.parametrize(
    ("options", "puts_off"), [({}, False), ({"min_tokens": 1}, True), ({"ignore_eos": True}, True)]
)
def test_a_structure_is_told_whether_its_end_is_to_be_put_off(
    sampler: Sampler, logits: Tensor, options: dict[str, object], puts_off: bool
) -> None:
    told: list[bool] = []

    def allowed(_: object, *, puts_off_end: bool, listed: object) -> TokenBits:
        told.append(puts_off_end)
        return token_bits([9], VOCAB)

    asked = point(**options)
    asked.state.structure = SimpleNamespace(  # type: ignore[assignment]
        vocab_size=VOCAB, allowed=allowed
    )
    sampler.scores(logits, [asked])
    assert told == [puts_off]


def test_on_a_reduced_vocabulary_none_may_be_left(sampler: Sampler, logits: Tensor) -> None:
    columns = torch.full((VOCAB,), -1)
    columns[torch.tensor([1, 4])] = torch.arange(2)
    reduced = ReducedVocabulary(torch.tensor([1, 4], dtype=torch.int32), columns)
    scores = sampler.scores(logits[:, :2], [point(allowed_token_ids=[2])], reduced)
    assert kept(scores) == set()
    assert not scores.isnan().any()


def test_top_k_top_p_min_p(sampler: Sampler) -> None:
    probs = torch.tensor([[0.4, 0.3, 0.2, 0.06, 0.04] + [1e-6] * 7])
    logits = probs.log()

    def survivors(**options: float) -> set[int]:
        return kept(sampler.scores(logits, [point(temperature=1.0, **options)]))

    assert survivors(top_k=2) == {0, 1}
    assert survivors(top_k=100) == set(range(VOCAB))
    assert survivors(top_p=0.65) == {0, 1}
    assert survivors(top_p=0.71) == {0, 1, 2}
    assert survivors(top_p=1e-9) == {0}, "the best token always stays"
    logits = torch.tensor([[0.0, 0.0] + [float("-inf")] * 10])
    assert survivors(top_p=0.5) == {0}, "no more than it takes"
    logits = probs.log()
    assert survivors(min_p=0.45) == {0, 1, 2}
    assert survivors(min_p=1.0) == {0}, "the best token always stays"
    assert survivors(top_k=3, min_p=0.7) == {0, 1}


def test_truncation_is_off_at_temperature_zero(sampler: Sampler, logits: Tensor) -> None:
    assert sampler.scores(logits, [point(top_k=1, top_p=0.1)]) is logits


def test_penalties_are_those_of_counting_token_by_token(sampler: Sampler) -> None:
    """Long prompts, drafts both new and seen, and several rows give the same bits."""
    size = 200
    logits = torch.randn(3, size, generator=torch.Generator().manual_seed(2)) * 3
    output, drafts = [7 * i % size for i in range(150)] + [5, 5, 9], [5, 199, 199, 3]
    options = {"repetition_penalty": 1.3, "frequency_penalty": 0.31, "presence_penalty": -0.7}
    state = SequenceState(sequence_start(1, list(range(40, 110)), **options))
    for token_id in output:
        state.append([token_id])
    points = [SamplePoint(state, drafts[:count]) for count in (0, 2, 4)]

    scores = sampler.scores(logits, points)

    for row, count in enumerate((0, 2, 4)):
        told = Counter([*output, *drafts[:count]])
        expected = logits[row].clone()
        for token_id in {*range(40, 110), *told}:
            value = expected[token_id]
            penalty = torch.tensor(1.3)
            expected[token_id] = value / penalty if value > 0 else value * penalty
            if told[token_id]:
                expected[token_id] += -(told[token_id] * 0.31 - 0.7)
        assert torch.equal(scores[row], expected)


def test_reduced_columns_get_what_their_tokens_get(sampler: Sampler, logits: Tensor) -> None:
    ids = torch.tensor([1, 4, 7], dtype=torch.int32)
    columns = torch.full((VOCAB,), -1)
    columns[ids.long()] = torch.arange(3)
    processed = point(
        [4, 8], frequency_penalty=0.5, repetition_penalty=1.4, logit_bias={7: 1.0, 8: 5.0}
    )
    full = sampler.scores(logits, [processed])
    reduced = sampler.scores(logits[:, ids.long()], [processed], ReducedVocabulary(ids, columns))
    assert torch.equal(reduced, full[:, ids.long()])


def test_row_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    logits = torch.randn(4, VOCAB)
    points = [
        point(temperature=0.9, top_p=0.8),
        point(),
        point([3], frequency_penalty=1.0),
        point(temperature=2.0),
    ]
    together = chosen(sampler, logits, points)
    alone = [chosen(sampler, logits[i : i + 1], [p])[0] for i, p in enumerate(points)]
    assert together == alone


def test_scores_do_not_depend_on_the_batch_to_the_bit(sampler: Sampler) -> None:
    """The sizes are divided by no vector width, and every processor occurs in some row."""
    logits = torch.randn(7, 1001, generator=torch.Generator().manual_seed(3)) * 4
    points = [
        point(temperature=0.9, top_p=0.8),
        point(temperature=1.3, top_k=7, top_p=0.95, min_p=0.02),
        point([3], frequency_penalty=1.0, logit_bias={5: 1.5}),
        point(),
        point([8, 8], temperature=0.7, repetition_penalty=1.2, min_p=0.1),
        point(temperature=0.5, top_k=3, allowed_token_ids=[4, 5, 6, 7, 900]),
        point(temperature=1.0, min_tokens=4, stop_token_ids=[0, 1]),
    ]
    together = sampler.scores(logits, points)
    for row, one in enumerate(points):
        assert torch.equal(sampler.scores(logits[row : row + 1], [one])[0], together[row])


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_k": 5, "top_p": 0.5}, {"min_p": 0.5}])
def test_truncation_hides_no_nan(
    sampler: Sampler, logits: Tensor, options: dict[str, float]
) -> None:
    bad = logits.clone()
    bad[0, 3] = float("nan")
    asked = point(temperature=1.0, **options)
    assert chosen(sampler, bad, [asked]) == [-1]


def test_nan_is_reported(sampler: Sampler, logits: Tensor) -> None:
    bad = logits.clone()
    bad[0, 3] = float("nan")
    assert chosen(sampler, torch.cat((bad, logits)), [point(), point()])[0] == -1


@pytest.mark.parametrize("temperatures", [(0.0, 0.0), (0.0, 0.4)])
@pytest.mark.parametrize("followers", [(0, 0), (0, 3)])
def test_what_a_head_expects_is_found_as_each_row_samples(
    sampler: Sampler, temperatures: tuple[float, ...], followers: tuple[int, ...]
) -> None:
    ids = torch.tensor([2, 3, 5, 7, 11], dtype=torch.int32)
    reduced = ReducedVocabulary(ids, torch.zeros(VOCAB, dtype=torch.int64))
    points = [point(drafts=[4], temperature=temperature) for temperature in temperatures]
    scores, other = torch.randn(2, 5), torch.randn(2, 1)
    keys = torch.tensor([each.state.noise_key(each.position) for each in points])
    asked = (torch.tensor(temperatures), keys, reduced.ids, torch.tensor(followers))
    expected = TorchOps("cpu").expect(scores, other, *asked)
    assert sampler.expect(scores, other, points, reduced, followers) == expected.tolist()
