"""What a chat template may be told besides the messages, by the operator or by a request."""

from collections.abc import Iterable
from typing import Any

# Set by the server or the template renderer itself; nobody may replace them.
_OWN = frozenset(
    (
        "add_generation_prompt",
        "additional_special_tokens",
        "bos_token",
        "chat_template",
        "cls_token",
        "continue_final_message",
        "conversation",
        "conversations",
        "documents",
        "eos_token",
        "mask_token",
        "max_length",
        "messages",
        "pad_token",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "self",
        "sep_token",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
        "unk_token",
    )
)


def own_names(variables: Iterable[str]) -> list[str]:
    """Return those variables that are the server's own to set."""
    return sorted(_OWN.intersection(variables))


def checked_variables(variables: dict[str, Any]) -> dict[str, Any]:
    """Check those of `--default-chat-template-kwargs`.

    Raises:
        ValueError: one is the server's own to set.
    """
    for name in own_names(variables):
        raise ValueError(f"{name} is the server's own to set")
    return variables
