import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from parsed import Parsed, parsed

from server.parsing.forms import ToolForm, form_of_template
from server.parsing.output_parser import OutputFormat
from server.parsing.tool_calls import ToolOptions

NAMES = ("f", "get_weather")
ARGUMENTS = '{"city": "Oslo {\\"}", "days": [1, {"a": "]"}]}'


def tools(form, *, is_parallel=True, **options):
    return OutputFormat(
        tool_form=form, tools=ToolOptions(names=NAMES, is_parallel=is_parallel), **options
    )


HERMES, LLAMA, MISTRAL = (tools(form) for form in ToolForm)
THINKING = OutputFormat(thinks=True)
INSIDE = OutputFormat(thinks=True, is_thinking=True)
BOTH = tools(ToolForm.HERMES, thinks=True)
HERMES_CALL = '<tool_call>\n{"name": "f", "arguments": ' + ARGUMENTS + "}\n</tool_call>"
LLAMA_CALL = '{"name": "f", "parameters": ' + ARGUMENTS + "}"

CASES = [
    (OutputFormat(), "<think>" + HERMES_CALL, Parsed(content="<think>" + HERMES_CALL)),
    (HERMES, "", Parsed()),
    (HERMES, " hi <tool_", Parsed(content=" hi <tool_")),
    (HERMES, "hi \n", Parsed(content="hi \n")),
    (
        HERMES,
        "Sure.\n" + HERMES_CALL + "\n" + HERMES_CALL + "\n",
        Parsed("", "Sure.", [("f", ARGUMENTS)] * 2),
    ),
    (HERMES, HERMES_CALL + " done", Parsed("", " done", [("f", ARGUMENTS)])),
    (HERMES, "hi \n" + HERMES_CALL + " done", Parsed("", "hi done", [("f", ARGUMENTS)])),
    (
        HERMES,
        '<tool_call>{"arguments":{"a":1},"parameters":{"b":2},"name":"f"}',
        Parsed(calls=[("f", '{"a":1}')]),
    ),
    (
        HERMES,
        '<tool_call>{"name":"f","name":"get_weather"}',
        Parsed(content='<tool_call>{"name":"f","name":"get_weather"}'),
    ),
    (
        HERMES,
        '<tool_call>{"' + "x" * 300 + '":1,"name":"f"}',
        Parsed(content='<tool_call>{"' + "x" * 300 + '":1,"name":"f"}'),
    ),
    (HERMES, '<tool_call>{"arguments":{"a":1},"name":"f"}', Parsed(calls=[("f", '{"a":1}')])),
    (HERMES, '<tool_call>{"name":"f"}</tool_call>', Parsed(calls=[("f", "{}")])),
    (
        HERMES,
        '<tool_call>{"id":7, "x":{"y":"}"}, "name":"f", "z":null }',
        Parsed(calls=[("f", "{}")]),
    ),
    (HERMES, '<tool_call>{"name":"f","arguments":"{\\"a\\":1}"}', Parsed(calls=[("f", '{"a":1}')])),
    (HERMES, '<tool_call>{"name":"f","arguments":{"a":1', Parsed(calls=[("f", '{"a":1')])),
    (HERMES, '<tool_call>{"name":"f"', Parsed(content='<tool_call>{"name":"f"')),
    (
        HERMES,
        '<tool_call>{"name":"no"}</tool_call> x',
        Parsed(content='<tool_call>{"name":"no"}</tool_call> x'),
    ),
    (HERMES, "<tool_call>oops</tool_call>", Parsed(content="<tool_call>oops</tool_call>")),
    (HERMES, '<tool_call>{"name":"f"}\n</tool_', Parsed(calls=[("f", "{}")])),
    (HERMES, '<tool_call>{"name":"f"}</tool_x', Parsed("", "</tool_x", [("f", "{}")])),
    (
        HERMES,
        HERMES_CALL.replace("f", "get_weather", 1),
        Parsed(calls=[("get_weather", ARGUMENTS)]),
    ),
    (
        tools(ToolForm.HERMES, is_parallel=False),
        HERMES_CALL * 2 + "x",
        Parsed(calls=[("f", ARGUMENTS)]),
    ),
    (LLAMA, LLAMA_CALL, Parsed(calls=[("f", ARGUMENTS)])),
    (
        LLAMA,
        " \n<|python_tag|>" + LLAMA_CALL + "; " + LLAMA_CALL,
        Parsed(calls=[("f", ARGUMENTS)] * 2),
    ),
    (LLAMA, '{"type": "function", "name": "f", "parameters": {}}', Parsed(calls=[("f", "{}")])),
    (LLAMA, ' {"name": "Bob"}', Parsed(content=' {"name": "Bob"}')),
    (LLAMA, '{"a": 1} and ' + LLAMA_CALL, Parsed(content='{"a": 1} and ' + LLAMA_CALL)),
    (LLAMA, "I say {}", Parsed(content="I say {}")),
    (LLAMA, "<|python_tag|>print(1)", Parsed(content="<|python_tag|>print(1)")),
    (LLAMA, LLAMA_CALL + " x", Parsed("", " x", [("f", ARGUMENTS)])),
    (LLAMA, LLAMA_CALL + "; ", Parsed(calls=[("f", ARGUMENTS)])),
    (LLAMA, "\n" + LLAMA_CALL + "; x", Parsed("", "; x", [("f", ARGUMENTS)])),
    (LLAMA, "; " + LLAMA_CALL, Parsed(content="; " + LLAMA_CALL)),
    (
        LLAMA,
        '{"name":"f","parameters":{};' + LLAMA_CALL,
        Parsed("", ";" + LLAMA_CALL, [("f", "{}")]),
    ),
    (LLAMA, " <|pyth", Parsed(content=" <|pyth")),
    (LLAMA, '{"na', Parsed(content='{"na')),
    (
        tools(ToolForm.LLAMA3_JSON, is_parallel=False),
        LLAMA_CALL + ";" + LLAMA_CALL,
        Parsed(calls=[("f", ARGUMENTS)]),
    ),
    (
        MISTRAL,
        "Hm [TOOL_CALLS] [" + LLAMA_CALL + ", " + LLAMA_CALL + "] ",
        Parsed("", "Hm", [("f", ARGUMENTS)] * 2),
    ),
    (
        MISTRAL,
        "[TOOL_CALLS]f" + ARGUMENTS + "[TOOL_CALLS]f[ARGS]{}",
        Parsed(calls=[("f", ARGUMENTS), ("f", "{}")]),
    ),
    (MISTRAL, "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}", Parsed(calls=[("f", "{}")])),
    (MISTRAL, "[TOOL_CALLS][" + LLAMA_CALL, Parsed(calls=[("f", ARGUMENTS)])),
    (MISTRAL, "[TOOL_CALLS][" + LLAMA_CALL + ", ", Parsed(calls=[("f", ARGUMENTS)])),
    (
        MISTRAL,
        '[TOOL_CALLS][{"name":"f","arguments":{}] x',
        Parsed("", "] x", [("f", "{}")]),
    ),
    (
        MISTRAL,
        "[TOOL_CALLS]f" + " " * 300 + "{}",
        Parsed(content="[TOOL_CALLS]f" + " " * 300 + "{}"),
    ),
    (MISTRAL, "[TOOL_CALLS]no{}", Parsed(content="[TOOL_CALLS]no{}")),
    (MISTRAL, "[TOOL_CALLS][]", Parsed(content="[TOOL_CALLS][]")),
    (MISTRAL, "[TOOL_CALLS] ", Parsed(content="[TOOL_CALLS] ")),
    (MISTRAL, "[TOOL_CALLS][x", Parsed(content="[TOOL_CALLS][x")),
    (MISTRAL, "[TOOL_CALLS][", Parsed(content="[TOOL_CALLS][")),
    (MISTRAL, "[TOOL_CALLS] [ ", Parsed(content="[TOOL_CALLS] [ ")),
    (MISTRAL, "[TOOL", Parsed(content="[TOOL")),
    (MISTRAL, "[TOOL_CALLS][{", Parsed(content="[TOOL_CALLS][{")),
    (
        tools(ToolForm.MISTRAL, is_parallel=False),
        "[TOOL_CALLS]f{}[TOOL_CALLS]f{}",
        Parsed(calls=[("f", "{}")]),
    ),
    (THINKING, "\n<think>\nhm </ think>\n\n</think>\n\nYes \n", Parsed("hm </ think>", "Yes \n")),
    (THINKING, "<think>\n\n</think>\n\nYes", Parsed(content="Yes")),
    (THINKING, " Yes <think>a</think>", Parsed(content=" Yes <think>a</think>")),
    (THINKING, " <th", Parsed(content=" <th")),
    (THINKING, "<think>cut </thi", Parsed(reasoning="cut </thi")),
    (INSIDE, "hm\n</think>\n\nYes</think>", Parsed("hm", "Yes</think>")),
    (INSIDE, "<think>hm</think>Yes", Parsed("hm", "Yes")),
    (INSIDE, "</think>Yes", Parsed(content="Yes")),
    (INSIDE, " <thi", Parsed(reasoning=" <thi")),
    (
        BOTH,
        "<think>" + HERMES_CALL + "</think>\n" + HERMES_CALL,
        Parsed(HERMES_CALL, "", [("f", ARGUMENTS)]),
    ),
]


@pytest.mark.parametrize(("output_format", "text", "expected"), CASES)
def test_a_text_whole_and_by_characters(output_format, text, expected):
    assert parsed(output_format, [text]) == expected
    assert parsed(output_format, list(text)) == expected


_BITS = st.sampled_from(
    [
        *'<>{}[]",: \\f',
        *("<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "<|python_tag|>"),
        *('{"name": "f", ', '"arguments": {', '"parameters": {', "text"),
    ]
)
_FORMATS = st.sampled_from([HERMES, LLAMA, MISTRAL, THINKING, INSIDE, BOTH])


@given(_FORMATS, st.lists(_BITS, max_size=12))
def test_any_text_means_the_same_however_it_is_cut(output_format, bits):
    whole = parsed(output_format, ["".join(bits)])
    assert parsed(output_format, bits) == whole
    assert parsed(output_format, list("".join(bits))) == whole


@given(st.lists(_BITS, max_size=12))
def test_a_text_without_calls_or_thoughts_is_content_unchanged(bits):
    text = "".join(bits)
    for output_format in (HERMES, LLAMA, MISTRAL):
        found = parsed(output_format, bits)
        assert found.calls or found.content == text


@pytest.mark.parametrize(
    ("output_format", "unit"),
    [
        (HERMES, "<tool_call>"),
        (HERMES, '<tool_call>{"name":"f"}'),
        (HERMES, '<tool_call>{"name":"f","arguments":{'),
        (HERMES, " "),
        (LLAMA, LLAMA_CALL + ";"),
        (MISTRAL, "[TOOL_CALLS]["),
        (MISTRAL, "[TOOL_CALLS]f{}"),
        (INSIDE, " "),
        (INSIDE, "</think"),
    ],
)
def test_time_grows_with_the_length_of_the_text_only(output_format, unit):
    """A parser of quadratic time (CVE-2025-48887) would take far longer for these texts."""
    num = 300_000 // len(unit)
    begun = time.process_time()
    parsed(output_format, [unit * num])
    parsed(output_format, [unit] * num)
    assert time.process_time() - begun < 20


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ messages }}", ToolForm.HERMES),
        ("… <tool_call> … <|python_tag|>", ToolForm.HERMES),
        ("… <|python_tag|> …", ToolForm.LLAMA3_JSON),
        ("… [TOOL_CALLS] …", ToolForm.MISTRAL),
    ],
)
def test_the_form_of_calls_follows_from_the_template(template, form):
    assert form_of_template(template) is form
