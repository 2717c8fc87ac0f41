"""A chat's tools: what may be asked, how the model is told, and what to look for in its answer."""

import json
from collections.abc import Sequence
from typing import Any

from engine import Tokenizer
from engine.errors import RequestError
from server.parsing.forms import ToolForm, form_of_template
from server.parsing.output_parser import OutputFormat
from server.parsing.reasoning import BEGIN, END
from server.parsing.tool_calls import ToolOptions
from server.protocol.chat import ChatCompletionRequest, ChosenTool, TemplateFields, Tool
from server.settings import ServerSettings

_NUM_TAIL_TOKENS = 16  # the prompt's last tokens, where a template may open or close a thought
_INSTRUCTIONS = """\
You can call functions. Their signatures, one JSON object a line:
<tools>
{tools}
</tools>
To call one, write its name and arguments as a JSON object within <tool_call></tool_call> tags:
<tool_call>
{{"name": "function-name", "arguments": {{}}}}
</tool_call>"""


def check_tools(body: ChatCompletionRequest) -> None:
    """Refuse tools and a tool choice that cannot be honoured.

    Raises:
        RequestError: naming the field.
    """
    names = [tool.function.name for tool in body.tools or []]
    if len(set(names)) < len(names):
        raise RequestError("Two tools have the same name.", param="tools")
    if body.tool_choice not in (None, "none", "auto"):
        if not names:
            raise RequestError("tool_choice needs tools.", param="tool_choice")
        if isinstance(body.tool_choice, ChosenTool) and body.tool_choice.function.name not in names:
            message = "tool_choice: no tool has this name."
            raise RequestError(message, param="tool_choice.function.name")


def tools_in_use(body: TemplateFields) -> list[Tool]:
    """Return the tools that the model is told of."""
    return [] if body.tool_choice == "none" else body.tools or []


def output_format(
    body: ChatCompletionRequest,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: ServerSettings,
) -> OutputFormat:
    """Return what to look for in the answers to `prompt`, by the settings or the chat template."""
    template = tokenizer.card.chat_template or ""
    tools = tools_in_use(body)
    thinks = END in template
    if settings.reasoning_parser != "auto":
        thinks = settings.reasoning_parser != "none"
    tail = ""
    if thinks:
        tail = tokenizer.decode(prompt[-_NUM_TAIL_TOKENS:], skip_special_tokens=False).rstrip()
    return OutputFormat(
        thinks=thinks and not tail.endswith(END),
        shows_reasoning=body.include_reasoning is not False,
        is_thinking=tail.endswith(BEGIN) or settings.reasoning_parser == "deepseek_r1",
        tool_form=form_of_template(template)
        if settings.tool_call_parser == "auto"
        else ToolForm(settings.tool_call_parser),
        tools=ToolOptions(
            names=frozenset(tool.function.name for tool in tools),
            is_parallel=body.parallel_tool_calls is not False,
        )
        if tools
        else None,
        ends_by_calling=not isinstance(body.tool_choice, ChosenTool),
    )


def told_of_tools(
    turns: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rewrite turns for a template that knows no tools: all is spelled out in the Hermes form."""
    plain = [_plain(turn) for turn in turns]
    if not tools:
        return plain
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    instructions = _INSTRUCTIONS.format(tools=lines)
    if plain[0]["role"] == "system":
        first = {**plain[0], "content": f"{plain[0]['content']}\n\n{instructions}".lstrip()}
        return [first, *plain[1:]]
    return [{"role": "system", "content": instructions}, *plain]


def _plain(turn: dict[str, Any]) -> dict[str, Any]:
    if turn["role"] == "tool":
        text = f"<tool_response>\n{turn['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    calls = turn.get("tool_calls")
    if not calls:
        return turn
    spelled = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in calls
    ]
    texts = [turn["content"], *spelled] if turn["content"] else spelled
    rest = {name: value for name, value in turn.items() if name != "tool_calls"}
    return {**rest, "content": "\n".join(texts)}
