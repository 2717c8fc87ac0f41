"""What rows keep of the step that chose their tokens; states and logits are made up."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import sequence_start
from torch import Tensor

from engine.model.ops.torch_ops import TorchOps
from engine.plan import RowPlan
from engine.worker import processors
from engine.worker.acceptance import Acceptance
from engine.worker.row import Alternate, Draft, Row
from engine.worker.sequence_state import SequenceState
from engine.worker.verifier import Verifier

pytestmark = pytest.mark.torch

SIZE = 10


def verifier() -> Verifier:
    """A verifier for which states are their own logits."""
    decoder: Any = SimpleNamespace(ops=TorchOps("cpu"))
    runner: Any = SimpleNamespace(logits=lambda hidden: hidden)
    return Verifier(decoder, runner, Acceptance([3]))


def row_of(**sampling: Any) -> Row:
    plan = RowPlan(0, 2, 1, [0], max_draft_tokens=4, is_decoding=True)
    start = sequence_start(0, [5, 9, 2], **sampling)
    return Row(plan, SequenceState(start))


def states_for(*token_ids: int) -> Tensor:
    """Return states [T, SIZE] after which these tokens are chosen, all different."""
    hidden = torch.zeros(len(token_ids), SIZE)
    for place, token_id in enumerate(token_ids):
        hidden[place, token_id] = 1.0 + place
    return hidden


def test_what_follows_an_alternate_has_its_own_state_and_log_probability() -> None:
    row = row_of(num_logprobs=0)
    row.drafts = [Draft(token_id, 0, 0.5, 0.5) for token_id in (7, 8)]
    row.alternates = [Alternate(6, 1, 0, 0.5, 0.5, spare=0)]
    hidden = states_for(7, 6, 3, 4)  # after the known token, each draft and the alternate
    [result] = verifier().verify([row], row.pending_refs(0), hidden, keeps_states=True)
    assert result.token_ids == row.state.token_ids[3:] == [7, 6, 4]
    expected = [hidden[place].log_softmax(-1)[i].item() for place, i in ((0, 7), (1, 6), (3, 4))]
    assert [each.logprob for each in result.logprobs] == pytest.approx(expected)
    assert row.state.last_hidden is not None
    assert torch.equal(row.state.last_hidden, hidden[3])


def overwriting(hidden: Tensor) -> Callable[[Tensor], None]:
    """Return what launches a pass that overwrites the states and logits of this one."""

    def launch(_: Tensor) -> None:
        hidden.fill_(float("nan"))

    return launch


def test_a_pass_launched_ahead_overwrites_no_state_that_is_kept() -> None:
    row, hidden = row_of(), states_for(7)
    [result] = verifier().next_tokens(
        [row], hidden, keeps_states=True, launch_next=overwriting(hidden)
    )
    assert result.token_ids == [7]
    assert row.state.last_hidden is not None
    assert torch.equal(row.state.last_hidden, states_for(7)[0])


@pytest.mark.parametrize("is_corrupt", [False, True])
def test_a_missing_choice_is_corruption_only_if_the_logits_were_before_the_next_pass(
    is_corrupt: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wishes(*_: object) -> None:
        raise IndexError("no such column")

    monkeypatch.setattr(processors, "_wishes", wishes)
    row, hidden = row_of(logit_bias={3: 1.0}), states_for(7)
    if is_corrupt:
        hidden[0, 5] = float("nan")
    [result] = verifier().next_tokens(
        [row], hidden, keeps_states=False, launch_next=overwriting(hidden)
    )
    assert result.error is not None
    assert (result.token_ids, result.is_corrupt) == ([], is_corrupt)
