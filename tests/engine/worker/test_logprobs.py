"""Log-probabilities read together have the same bits as those of each position alone."""

import pytest
import torch
from torch import Tensor

from engine.worker.logprobs import Wanted, _distinct_keys, read_for_rows, read_logprobs

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("vocab_size", [12, 1001, 4096])
def test_positions_read_together_are_those_of_each_alone(vocab_size: int) -> None:
    """In any order, also more positions than a piece has, with different numbers of top tokens."""
    logits = torch.randn(70, vocab_size, generator=torch.Generator().manual_seed(1)) * 4
    wanted = [Wanted(place, place * 7 % vocab_size, (0, 5, 40)[place % 3]) for place in range(70)]
    for chosen in (wanted, wanted[5:9], wanted[::-1]):
        for one, entry in zip(chosen, read_logprobs(logits, chosen), strict=True):
            logprobs = logits[one.place].log_softmax(-1)
            best = logprobs.topk(min(one.num_top, vocab_size))
            assert entry.token_id == one.token_id
            assert entry.logprob == float(logprobs[one.token_id])
            assert entry.rank == int((logprobs >= logprobs[one.token_id]).sum())
            assert entry.top == tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def test_the_device_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, reads = Tensor.tolist, []
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(1) or real(self))
    logits = torch.randn(50, 30)
    read_logprobs(logits, [Wanted(place, 3, place % 4) for place in range(50)])
    assert len(reads) == 1
    assert read_logprobs(logits, []) == []
    assert len(reads) == 1


def test_keys_put_the_lower_index_first_among_equals() -> None:
    """The most likely tokens are found this way on a GPU."""
    values = torch.tensor(
        [[-1.0, 0.0, float("-inf"), 0.5, -1.0, 0.5, -2e-38], [-3.0, -3.0, -3.0, -1e9, -3.0, -1, -1]]
    )
    order = _distinct_keys(values).topk(7).indices
    assert order.tolist() == [[3, 5, 1, 6, 0, 4, 2], [5, 6, 0, 1, 2, 4, 3]]


def test_a_fault_is_the_rows_that_has_it() -> None:
    logits = torch.randn(3, 30)
    wanted = {0: [Wanted(0, 3, 1)], 4: [Wanted(1, 99, 1)], 7: [Wanted(2, 5, 1)]}
    read = read_for_rows(logits, wanted)
    assert read[4] is None
    assert read[0] == read_logprobs(logits, wanted[0])
    assert read[7] == read_logprobs(logits, wanted[7])
