"""The forms in which model families write tool calls, and which of them a chat template uses."""

from dataclasses import replace
from enum import StrEnum

from server.parsing.hermes import HermesParser
from server.parsing.llama3_json import Llama3JsonParser
from server.parsing.mistral import MistralParser
from server.parsing.tool_calls import ToolOptions, ToolParser, short_call_id


class ToolForm(StrEnum):
    """The forms, named as `--tool-call-parser` takes them."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"


def form_of_template(template: str) -> ToolForm:
    """Return the form in which a chat template shows calls to its model; by default Hermes'."""
    if "[TOOL_CALLS]" in template:
        return ToolForm.MISTRAL
    if "<tool_call>" not in template and (
        "<|python_tag|>" in template or '"parameters": ' in template
    ):
        return ToolForm.LLAMA3_JSON
    return ToolForm.HERMES


def tool_parser(form: ToolForm, options: ToolOptions) -> ToolParser:
    """Make a parser for one choice."""
    if form is ToolForm.MISTRAL:
        return MistralParser(replace(options, new_call_id=short_call_id))
    return Llama3JsonParser(options) if form is ToolForm.LLAMA3_JSON else HermesParser(options)
