"""Tokens' log-probabilities go to the message that the tokens spell, whatever they span."""

from dataclasses import replace

import pytest
from fake_engine import ByteTokenizer

from engine.request import TokenLogprobs
from server.parsing.output_parser import OutputFormat
from server.parsing.tool_calls import ToolOptions
from server.render.common import AnswerFrame
from server.render.message_logprobs import MessageLogprobs

CALL = ("<tool_call>", '{"name": "f", "arguments": {}}')
FORMAT = OutputFormat(thinks=True, tools=ToolOptions(names={"f"}))


class Pieces(ByteTokenizer):
    """A tokenizer of fixed pieces, whose places are their ids; an empty one is a control token."""

    def __init__(self, *pieces: str | bytes) -> None:
        super().__init__()
        self._pieces = [p.encode() if isinstance(p, str) else p for p in pieces]

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]

    def token_text(self, token_id: int) -> str:
        return self._pieces[token_id].decode(errors="replace")

    def is_special(self, token_id: int) -> bool:
        return not self._pieces[token_id]


def given(*pieces: str | bytes, output_format: OutputFormat = FORMAT) -> list[list[int]]:
    """Return which of the tokens each message is given, by the tokens' places."""
    frame = AnswerFrame(
        answer_id="a",
        created=0,
        model="m",
        tokenizer=Pieces(*pieces),  # type: ignore[arg-type]
        num_choices=1,
        num_prompt_tokens=1,
        max_draft_tokens=0,
    )
    sorter = MessageLogprobs(frame, output_format)
    tokens = [TokenLogprobs(token_id=n, logprob=-n, rank=1) for n in range(len(pieces))]
    sorter.push(tokens)
    sorter.finish()
    messages = []
    while found := sorter.take(len(messages)):
        messages.append([int(-token.logprob) for token in found])
    return messages


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["Yes", ".", ""], [[0, 1, 2]]),
        (["<"], [[0]]),  # no mark after all
        (["a", "<", "<", "b"], [[0, 1, 2, 3]]),
        (["a", b"\xc3", b"\xa9"], [[0, 1, 2]]),
        (["<think>", "h", "\n</think>Yes", "."], [[2, 3]]),
        (["<think>", "h</think>Yes", "."], [[1, 2]]),
        (["<think>", "t", "</think>", "t"], [[3]]),
        (["<think>", b"\xc3", b"\xa9", "</think>", "Yes"], [[4]]),
        (["Go", " <", *CALL, "</tool_call>Done"], [[0, 1], [4]]),
        (["a", "<", *CALL, "</tool_call>", ""], [[0, 1]]),  # "<" begins a mark only the second time
    ],
    ids=str,
)
def test_a_message_is_given_the_tokens_that_spell_it(pieces, expected):
    assert given(*pieces) == expected


def test_calls_are_left_to_the_answers_own_parser_to_note():
    noted: list[bool] = []
    given("a", *CALL, "</tool_call>", output_format=replace(FORMAT, note_calls=noted.append))
    assert noted == []
