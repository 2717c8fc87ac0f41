"""The chat template or the settings decide what is looked for in an answer."""

from typing import Any

import pytest
from fake_engine import ByteTokenizer

from server.parsing.forms import ToolForm
from server.protocol.chat import ChatCompletionRequest
from server.settings import ServerSettings
from server.tools import output_format


def expected(template: str, prompt: str, **settings: str) -> Any:
    body = ChatCompletionRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    )
    checked = ServerSettings.model_validate(settings)
    return output_format(body, ByteTokenizer(template), list(prompt.encode()), checked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("template", "prompt", "parser", "thinks", "is_thinking"),
    [
        ("plain", "a", "auto", False, False),
        ("</think>", "a", "auto", True, False),
        ("</think>", "a<think>\n", "auto", True, True),
        ("</think>", "a<think></think>\n\n", "auto", False, False),
        ("</think>", "a<think>\n", "none", False, False),
        ("plain", "a", "qwen3", True, False),
        ("plain", "a", "deepseek_r1", True, True),
        ("plain", "a</think>", "deepseek_r1", False, True),
    ],
)
def test_thoughts(template, prompt, parser, thinks, is_thinking):
    found = expected(template, prompt, reasoning_parser=parser)

    assert (found.thinks, found.is_thinking) == (thinks, is_thinking)


@pytest.mark.parametrize(
    ("parser", "form"),
    [("auto", ToolForm.MISTRAL), *((str(form), form) for form in ToolForm)],
)
def test_the_form_of_calls(parser, form):
    assert expected("[TOOL_CALLS]", "a", tool_call_parser=parser).tool_form is form
