"""Every parameter of the endpoints that generate, embed or tokenize, with values that matter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
THOUGHT = "<think>hm</think>"
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
_NAMED = {"type": "function", "function": {"name": "f"}}
_HALF_SAID = {"role": "assistant", "content": "It is"}
_SCHEMA = {"name": "s", "schema": {"type": "object"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of docs/parameters.md: a parameter and a value for it."""

    name: str
    value: Any
    chat_value: Any = None  # the value for chats, if they need another one
    beside: Mapping[str, Any] = field(default_factory=dict)  # other fields that it needs
    text: str = "Hello world!"  # what the model generates

    def fields(self, *, is_chat: bool) -> dict[str, Any]:
        """Return the parameter as a field of a body."""
        other = is_chat and self.chat_value is not None
        return {self.name: self.chat_value if other else self.value}


def _case(name: str, value: Any, **more: Any) -> Case:
    return Case(name=name, value=value, **more)


CASES = (
    _case("add_generation_prompt", False),
    _case("add_special_tokens", False, chat_value=True),
    _case("allowed_token_ids", [5]),
    _case("audio", {"voice": "alloy"}),
    _case("bad_words", ["x"]),
    _case("best_of", 2),
    _case("cache_salt", "pepper"),
    _case("chat_template", "{{ messages }}"),
    _case("chat_template_kwargs", {"enable_thinking": False}),
    _case("continue_final_message", True),
    _case("documents", [{"title": "t", "text": "x"}]),
    _case("early_exit", {"threshold": 0.5}),
    _case("early_exit", {"max_draft_tokens": 1}),
    _case("early_exit", {"lookup": False}),
    _case("early_exit", {"return_trace": True}),
    _case("ebnf", "root ::= 'a'"),
    _case("echo", True, beside={"messages": [_HALF_SAID]}),
    _case("ec_transfer_params", {"a": 1}),
    _case("frequency_penalty", 0.5),
    _case("function_call", "auto"),
    _case("functions", [{"name": "f"}]),
    _case("grammar", "root ::= 'a'"),
    _case("guided_choice", ["a"]),
    _case("guided_grammar", "root ::= 'a'"),
    _case("guided_json", {"type": "object"}),
    _case("guided_regex", "a+"),
    _case("ignore_eos", True),
    _case("include_reasoning", False, text=THOUGHT + "Yes."),
    _case("include_stop_str_in_output", True, beside={"stop": ["w"]}),
    _case("json_schema", {"type": "object"}),
    _case("kv_transfer_params", {"a": 1}),
    _case("length_penalty", 0.5),
    _case("logit_bias", {"5": 1.0}),
    _case("logits_processors", ["x"]),
    _case("logprob_token_ids", [5]),
    _case("logprobs", 2, chat_value=True),
    _case("max_completion_tokens", 3),
    _case("max_new_tokens", 3),
    _case("max_tokens", 3),
    _case("max_tokens", 0),
    _case("max_tokens_to_sample", 3),
    _case("media_io_kwargs", {"video": {"num_frames": 1}}),
    _case("metadata", {"a": "b"}),
    _case("min_p", 0.1),
    _case("min_tokens", 2),
    _case("mm_processor_kwargs", {"a": 1}),
    _case("modalities", ["text", "audio"]),
    _case("moderation", {"model": "m"}),
    _case("n", 2),
    _case("n_predict", 3),
    _case("num_predict", 3),
    _case("parallel_tool_calls", False, beside={"tools": [TOOL]}, text=CALL * 2),
    _case("prediction", {"type": "content", "content": "Hello"}),
    _case("presence_penalty", 0.5),
    _case("priority", 1),
    _case("prompt_cache_key", "k"),
    _case("prompt_cache_options", {"mode": "explicit"}),
    _case("prompt_cache_retention", "24h"),
    _case("prompt_embeds", "AAAA"),
    _case("prompt_logprobs", 1),
    _case("reasoning_effort", "low"),
    _case("regex", "a+"),
    _case("repetition_penalty", 1.1),
    _case("repetition_detection", {"max_pattern_size": 2}),
    _case("request_id", "mine"),
    _case("response_format", {"type": "json_object"}),
    _case("response_format", {"type": "json_schema", "json_schema": _SCHEMA}),
    _case("return_prompt_text", True),
    _case("return_token_ids", True),
    _case(
        "return_tokens_as_token_ids",
        True,
        beside={"logprobs": True},
    ),
    _case("safety_identifier", "s"),
    _case("seed", 7),
    _case("service_tier", "flex"),
    _case("session_id", "s"),
    _case("skip_special_tokens", False),
    _case("spaces_between_special_tokens", False),
    _case("stop", ["w"]),
    _case("stop_sequences", ["w"]),
    _case("stop_token_ids", [5]),
    _case("store", True),
    _case("stream_interval", 2),
    _case("stream_options", {"include_usage": True}),
    _case("stream_options", {"include_obfuscation": True}),
    _case("structured_outputs", {"regex": "a+"}),
    _case("structured_outputs", {"choice": ["a", "b"]}),
    _case("structured_outputs", {"grammar": "root ::= 'a'"}),
    _case("structured_outputs", {"json": {"type": "object"}}),
    _case("structured_outputs", {"json_object": True}),
    _case("suffix", "x"),
    _case("temperature", 0.5),
    _case("thinking_token_budget", 5),
    _case("tool_choice", "none", beside={"tools": [TOOL]}, text=CALL),
    _case("tool_choice", "required", beside={"tools": [TOOL]}, text=CALL),
    _case("tool_choice", _NAMED, beside={"tools": [TOOL]}, text=CALL),
    _case("tools", [TOOL], text=CALL),
    _case("top_k", 5),
    _case("top_logprobs", 2, beside={"logprobs": True}),
    _case("top_p", 0.5),
    _case("truncate_prompt_tokens", 2),
    _case("truncation_side", "right", beside={"truncate_prompt_tokens": 2}),
    _case("use_beam_search", True),
    _case("user", "u"),
    _case("verbosity", "low"),
    _case("vllm_xargs", {"a": 1}),
    _case("watermarking", True),
    _case("web_search_options", {"search_context_size": "low"}),
)

_FLAT_TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}}
_TEXT_LOGPROBS = {"include": ["message.output_text.logprobs"]}
_OF_RESPONSES = (
    _case("access_programs", {"cyber": "standard"}),
    _case("background", True),
    _case("background_options", {"x": 1}),
    _case("context_management", [{"type": "compaction"}]),
    _case("conversation", "conv_1"),
    _case("enable_response_messages", True),
    _case("image", {"context_compression": "enabled"}),
    _case("include", ["message.output_text.logprobs"]),
    _case("include", ["reasoning.encrypted_content"]),
    _case("instructions", "Be brief."),
    _case("max_output_tokens", 3),
    _case("max_tool_calls", 2),
    _case("metadata", {"a": "b"}),
    _case("parallel_tool_calls", False, beside={"tools": [_FLAT_TOOL]}, text=CALL * 2),
    _case("previous_input_messages", [{"role": "user", "content": "a"}]),
    _case("previous_response", {"id": "resp_1"}),
    _case("previous_response_id", "resp_1"),
    _case("prompt", {"id": "pmpt_1"}),
    _case("reasoning", {"effort": "low"}),
    _case("reasoning", {"summary": "auto"}),
    _case("reasoning", {"summary": "detailed"}),
    _case("reasoning", {"context": "all_turns"}),
    _case("reasoning", {"mode": "pro"}),
    _case("service_tier", "flex"),
    _case("store", True),
    _case("stream_options", {"include_obfuscation": False}),
    _case("stream_options", {"include_obfuscation": True}),
    _case("text", {"format": {"type": "json_object"}}),
    _case("text", {"format": {"type": "json_schema", **_SCHEMA}}),
    _case("text", {"verbosity": "low"}),
    _case("tool_choice", "none", beside={"tools": [_FLAT_TOOL]}, text=CALL),
    _case("tool_choice", "required", beside={"tools": [_FLAT_TOOL]}, text=CALL),
    _case(
        "tool_choice", {"type": "function", "name": "f"}, beside={"tools": [_FLAT_TOOL]}, text=CALL
    ),
    _case("tools", [_FLAT_TOOL], text=CALL),
    _case("tools", [{"type": "web_search"}]),
    _case("tools", [{**_FLAT_TOOL, "defer_loading": True}]),
    _case("top_logprobs", 2, beside=_TEXT_LOGPROBS),
    _case("truncation", "auto"),
)
_OWN_NAMES = {case.name for case in _OF_RESPONSES}
# The parameters that only the chat API has are sent too: they are honoured or refused.
RESPONSES_CASES = tuple(
    sorted(
        (*_OF_RESPONSES, *(case for case in CASES if case.name not in _OWN_NAMES)),
        key=lambda case: case.name,
    )
)

TOKENIZE_CASES = (
    _case("add_generation_prompt", False),
    _case("add_special_tokens", True),
    _case("chat_template", "{{ messages }}"),
    _case("chat_template_kwargs", {"enable_thinking": False}),
    _case("continue_final_message", True),
    _case("reasoning_effort", "low"),
    _case("return_token_strs", True),
    _case("tool_choice", "none", beside={"tools": [TOOL]}),
    _case("tools", [TOOL]),
    _case("truncate_prompt_tokens", 2),
    _case("truncation_side", "right", beside={"truncate_prompt_tokens": 2}),
)

EMBEDDINGS_CASES = (
    _case("add_special_tokens", False),
    _case("cache_salt", "pepper"),
    _case("dimensions", 2),
    _case("embed_dtype", "float16"),
    _case("encoding_format", "base64"),
    _case("endianness", "big"),
    _case("normalize", False),
    _case("pooling", "last"),
    _case("priority", 1),
    _case("truncate_prompt_tokens", 2),
    _case("truncation_side", "right", beside={"truncate_prompt_tokens": 2}),
    _case("user", "somebody"),
)
