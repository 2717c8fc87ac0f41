"""A thought's tokens are counted one by one, with its tags and with control tokens."""

import pytest
from fake_engine import ByteTokenizer

from server.parsing.reasoning import ReasoningSplitter
from server.parsing.reasoning_counter import ReasoningCounter

THOUGHT = list(b"<think>a</think>")
CONTROL = 256


class Spelled(ByteTokenizer):
    """A tokenizer whose control tokens have bytes, as those of real ones do."""

    def token_bytes(self, token_id: int) -> bytes:
        return b"<s>" if self.is_special(token_id) else super().token_bytes(token_id)


@pytest.mark.parametrize(
    ("token_ids", "num_tokens"),
    [
        ([*THOUGHT, *b"b"], len(THOUGHT)),
        ([CONTROL, *THOUGHT, *b"b"], 1 + len(THOUGHT)),
        ([*THOUGHT[:-4], CONTROL, *THOUGHT[-4:], CONTROL], 1 + len(THOUGHT)),
        ([*b"b", *THOUGHT], 0),
    ],
)
def test_control_tokens_are_no_text_but_count_within_a_thought(token_ids, num_tokens):
    counter = ReasoningCounter(Spelled(), ReasoningSplitter(begins_inside=False))
    counter.push(token_ids)

    assert counter.num_tokens == num_tokens
