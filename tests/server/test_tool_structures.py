"""Every text that the mask of forced calls allows parses as calls that follow their schemas."""

import json
import random
from typing import Any

import pytest
from fake_engine import ByteTokenizer
from grammar_samples import BYTES, EOS, sample

from engine.grammar.compiler import GrammarCompiler
from server.parsing.events import (
    ContentText,
    OutputEvent,
    ReasoningText,
    ToolCallArguments,
    ToolCallStart,
)
from server.parsing.forms import ToolForm
from server.parsing.output_parser import OutputFormat
from server.parsing.tool_calls import ToolOptions
from server.protocol.chat import ChatCompletionRequest
from server.structures import AskedStructure
from server.tool_structures import chat_structure

pytestmark = pytest.mark.torch

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"enum": [1, 2]}},
    "required": ["city"],
}
UNENFORCEABLE = {"type": "object", "not": {}}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "strict": True, "parameters": CITY}},
    {"type": "function", "function": {"name": "time", "parameters": UNENFORCEABLE}},
]
CONTROLS = {257: "[TOOL_CALLS]", 258: "[ARGS]"}


class Tokenizer(ByteTokenizer):
    """A byte tokenizer with Mistral's control tokens."""

    def control_token_id(self, text: str) -> int | None:
        """See `engine.tokenizer.Tokenizer`."""
        return next((token_id for token_id, each in CONTROLS.items() if each == text), None)


@pytest.fixture(scope="module")
def compiler() -> GrammarCompiler:
    controls = [b"\xff" + text.encode() for text in CONTROLS.values()]
    return GrammarCompiler([*BYTES, b"", *controls], [EOS])


def expected(form: ToolForm, *, is_parallel: bool = True, thinks: bool = False) -> OutputFormat:
    tools = ToolOptions(names=frozenset(("weather", "time")), is_parallel=is_parallel)
    return OutputFormat(tool_form=form, tools=tools, thinks=thinks)


def structure(form: OutputFormat, tokenizer: ByteTokenizer, **fields: Any) -> AskedStructure:
    turns = [{"role": "user", "content": "hi"}]
    body = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": turns, "tools": TOOLS, **fields}
    )
    found = chat_structure(body, form, tokenizer)  # type: ignore[arg-type]
    assert found is not None
    return found


def samples(compiler: GrammarCompiler, asked: AskedStructure) -> list[str]:
    """Return random texts that a structure allows, with control tokens kept."""
    grammar = compiler.compile(asked.structure)
    source = random.Random(0)
    found = (sample(grammar, source, 256 + 3) for _ in range(30))
    texts = [
        b"".join(CONTROLS[i].encode() if i in CONTROLS else BYTES[i] for i in ids)
        for ids in found
        if ids is not None
    ]
    assert len(texts) > 5
    return [text.decode(errors="replace") for text in texts]


def events(form: OutputFormat, text: str) -> list[OutputEvent]:
    parser = form.parser()
    return [*parser.push(text), *parser.finish()]


def check_calls(found: list[OutputEvent]) -> int:
    """Return the number of calls, after checking each against its schema."""
    starts = [event for event in found if isinstance(event, ToolCallStart)]
    for start in starts:
        pieces = [
            e.text for e in found if isinstance(e, ToolCallArguments) and e.index == start.index
        ]
        arguments = json.loads("".join(pieces))
        assert isinstance(arguments, dict)
        if start.name == "weather":
            assert set(arguments) <= {"city", "days"}
            assert isinstance(arguments["city"], str)
            assert arguments.get("days", 1) in (1, 2)
    return len(starts)


@pytest.mark.parametrize(
    ("form", "tokenizer"),
    [
        (ToolForm.HERMES, Tokenizer()),
        (ToolForm.LLAMA3_JSON, Tokenizer()),
        (ToolForm.MISTRAL, Tokenizer()),
        (ToolForm.MISTRAL, Tokenizer("[TOOL_CALLS][ARGS]")),  # the newer form
    ],
)
@pytest.mark.parametrize("is_parallel", [False, True])
def test_forced_calls_are_calls(
    compiler: GrammarCompiler, form: ToolForm, tokenizer: ByteTokenizer, is_parallel: bool
) -> None:
    looked_for = expected(form, is_parallel=is_parallel)
    asked = structure(
        looked_for, tokenizer, tool_choice="required", parallel_tool_calls=is_parallel
    )
    for text in samples(compiler, asked):
        found = events(looked_for, text)
        assert not any(isinstance(event, ContentText) for event in found), text
        num_calls = check_calls(found)
        assert num_calls >= 1, text
        assert is_parallel or num_calls == 1


@pytest.mark.parametrize("form", ToolForm)
def test_strict_calls_amid_text_follow_their_schema(
    compiler: GrammarCompiler, form: ToolForm
) -> None:
    looked_for = expected(form)
    for text in samples(compiler, structure(looked_for, Tokenizer())):
        check_calls(events(looked_for, text))


def test_a_thought_comes_before_a_call(compiler: GrammarCompiler) -> None:
    looked_for = expected(ToolForm.HERMES, thinks=True)
    grammar = compiler.compile(structure(looked_for, Tokenizer(), tool_choice="required").structure)
    import xgrammar

    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    for text in (f"<think>hm\t{{}}</think>\n\n{call}", call):
        matcher = xgrammar.GrammarMatcher(grammar)
        assert matcher.accept_string(text)
        assert matcher.is_completed()
        found = events(looked_for, text)
        assert check_calls(found) == 1
        assert any(isinstance(event, ReasoningText) for event in found) == text.startswith(
            "<think>"
        )
