"""Every message is decoded as it was encoded, and anything else is refused."""

from pathlib import Path

import pytest
from fake_worker import FakeWorker, make_request

from engine.config import EngineConfig, ExitsConfig, ModelConfig
from engine.plan import Learning, RowPlan, RowResult, StepPlan, StepResult
from engine.policy_reason import PolicyReason, PolicyReport
from engine.request import ExitRecord, TokenLogprobs
from engine.sequence import Sequence
from engine.wire import HEADER, Failure, Message, Progress, Wire, frame_length

START = Sequence(3, make_request(1, seed=2**64 - 1, logit_bias={7: -1.5}), (0,), 64).start()
MESSAGES = [
    EngineConfig(
        model=ModelConfig(directory=Path("/models/a b")), exits=ExitsConfig(heads=Path("heads"))
    ),
    EngineConfig(model=ModelConfig(directory=Path("m"), dtype="bfloat16"), worker="inline"),
    Progress("reading weights", 0.25),
    Failure("HeadsMismatch", "exit heads: ünlike"),
    FakeWorker().info,
    StepPlan(step_id=1),
    StepPlan(
        step_id=2**40,
        ended=[1, 2],
        started=[START],
        rows=[
            RowPlan(
                sequence_id=3,
                start=0,
                num_tokens=5,
                block_table=[4, 0],
                max_draft_tokens=2,
                is_decoding=True,
            )
        ],
    ),
    StepResult(
        step_id=2,
        rows=[
            RowResult(
                sequence_id=3,
                token_ids=[9, 8],
                logprobs=(
                    TokenLogprobs(token_id=9, logprob=-0.5, top=((9, -0.5), (1, float("-inf")))),
                ),
                drafts=(ExitRecord(token_id=9, exit_layer=4, confidence=0.75, accepted=True),),
            ),
            RowResult(sequence_id=4, token_ids=[], error="the model's logits are not numbers"),
        ],
        duration_s=0.01,
        policy=PolicyReport(PolicyReason.DRAFTING, speedup=1.5, looks=(0.25,)),
        learning=Learning(num_updates=2, seconds=0.1),
    ),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_round_trip(message: Message) -> None:
    wire = Wire()
    frame = wire.encode(message)
    length, kind = frame_length(frame[: HEADER.size])
    assert length == len(frame) - HEADER.size
    assert wire.decode(kind, frame[HEADER.size :]) == message


def test_what_is_not_a_message_is_refused() -> None:
    wire = Wire()
    body = wire.encode(Progress("x", 0.5))[HEADER.size :]
    with pytest.raises(ValueError, match="kind"):
        wire.decode(99, body)
    with pytest.raises(ValueError, match="missing required field"):
        wire.decode(5, body)
    with pytest.raises(ValueError, match="bytes"):
        frame_length(b"\xff" * HEADER.size)
