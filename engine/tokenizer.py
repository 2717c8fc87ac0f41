"""Text <-> token ids, and chats -> token ids. A thin layer over transformers' fast tokenizers.

Loading one imports transformers (which takes a second), never torch. Knows nothing of requests or
of streaming (that is `detokenizer.py`).
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import filterfalse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError

from engine.checkpoint.directory import eos_token_ids
from engine.config import ChatConfig
from engine.errors import ModelLoadError, RequestError, UnsafeCheckpoint
from engine.vocabulary import byte_alphabet, is_byte_level, piece_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# While a chat template runs, some of these characters (private use) stand for special tokens.
_PLACEHOLDERS = range(0x100000, 0x10FFFE)
_MAX_REFUSAL_CHARS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerCard:
    """What a client needs to know about a tokenizer to build prompts itself."""

    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    chat_template: str | None  # of several, the one that is told of tools


class Tokenizer:
    """A model's tokenizer and chat template.

    Attributes:
        vocab_size: One more than the highest token id it knows (the model's own may be padded).
        eos_token_ids: Ids that end a sequence.
        strips_first_space: Whether decoded text begins without the space its first token carries.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        eos_token_ids: Sequence[int],
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            variables: What the chat template is told where a chat does not say.
        """
        self._tokenizer = tokenizer
        self._variables = variables or {}
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()  # the settings of a training run are often saved with it
        self._backend.no_padding()
        self.vocab_size = 1 + max(self._backend.get_vocab(with_added_tokens=True).values())
        self.eos_token_ids = tuple(eos_token_ids)
        added = self._backend.get_added_tokens_decoder()
        self._added: dict[int, str] = {token_id: token.content for token_id, token in added.items()}
        self._bytes = {token_id: text.encode() for token_id, text in self._added.items()}
        self._special = {token_id for token_id, token in added.items() if token.special}
        texts = sorted({self._added[token_id] for token_id in self._special})
        self._special_texts = {text: _json_text(text)[1:-1] for text in texts}  # as JSON has them
        spells_bytes = is_byte_level(self._backend.to_str())
        self._byte_of = byte_alphabet() if spells_bytes else None
        self.strips_first_space = not spells_bytes

    @cached_property
    def card(self) -> TokenizerCard:
        """The tokenizer's class, special tokens and chat template."""
        source = self._tokenizer
        template = source.chat_template
        if isinstance(template, dict):
            template = template.get("tool_use", template.get("default"))
        return TokenizerCard(
            tokenizer_class=type(source).__name__,
            bos_token=source.bos_token,
            eos_token=source.eos_token,
            pad_token=source.pad_token,
            unk_token=source.unk_token,
            chat_template=template,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return a text's token ids; special tokens spelled out in it are taken as such.

        Raises:
            RequestError: The text is not valid Unicode (it holds half a surrogate pair).
        """
        encode = self._backend.encode_batch_fast  # other threads run meanwhile, unlike in `encode`
        try:
            [encoded] = encode([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise RequestError("The text contains half a surrogate pair.") from error
        ids: list[int] = encoded.ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids; bytes that are not UTF-8 become U+FFFD."""
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def is_special(self, token_id: int) -> bool:
        """Whether a token is a control token, which has no place in the output text."""
        return token_id in self._special

    def control_token_id(self, text: str) -> int | None:
        """Return the id of a control token; None if the text is not one."""
        return next((i for i in sorted(self._special) if self._added[i] == text), None)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token stands for; none for an id that the tokenizer does not know."""
        spelled = self._bytes.get(token_id)
        if spelled is None:
            piece: str | None = self._backend.id_to_token(token_id)
            if piece is None:
                return b""
            spelled = self._bytes[token_id] = piece_bytes(piece, self._byte_of)
        return spelled

    def token_piece(self, token_id: int) -> str:
        """Return a token as the vocabulary spells it; empty for an unknown id."""
        return self._backend.id_to_token(token_id) or ""

    def token_text(self, token_id: int) -> str:
        """Return a token for display; bytes that are not UTF-8 on their own become U+FFFD."""
        return self.token_bytes(token_id).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **kwargs: Any,
    ) -> list[int]:
        """Return the token ids of a chat, rendered with the chat template.

        Special tokens come from the template alone: spelled out in a message they are plain text.

        Args:
            messages: The turns of the chat.
            add_generation_prompt: Whether to open the assistant's turn at the end.
            kwargs: Passed on to the template (`tools`, `enable_thinking`, ...); they win over the
                tokenizer's own variables.

        Raises:
            RequestError: There is no template, or it fails on these messages.
        """
        if not self._tokenizer.chat_template:
            raise RequestError("This model has no chat template.", param="messages")
        kwargs = {**self._variables, **kwargs}
        placeholders = self._placeholders_in([*messages, kwargs])
        rendered = self._render(
            _replaced(list(messages), placeholders),
            add_generation_prompt=add_generation_prompt,
            **_replaced(kwargs, placeholders),
        )
        return self._encode_rendered(rendered, {c: text for text, c in placeholders.items()})

    def _render(self, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> str:
        try:
            rendered = self._tokenizer.apply_chat_template(messages, tokenize=False, **kwargs)
        except Exception as error:  # a template is a program: it may fail in any way
            raise _refusal(error, continues=bool(kwargs.get("continue_final_message"))) from error
        assert isinstance(rendered, str), "one conversation gives one text"
        return rendered

    def check_chat_template(self) -> None:
        """Refuse now, not at the first chat, a template with which no chat could be rendered.

        Raises:
            UnsafeCheckpoint: The template does what its sandbox forbids.
            ModelLoadError: It is not a valid template, or it knows none of our variables' names.
        """
        template = self._tokenizer.chat_template or ""
        for name in self._variables:
            if name not in str(template):
                message = f"--default-chat-template-kwargs: the chat template knows no {name!r}."
                raise ModelLoadError(message)
        if not template:
            return
        turn = {"role": "user", "content": "Hello"}
        try:
            self._tokenizer.apply_chat_template(
                [turn], tokenize=False, add_generation_prompt=True, **self._variables
            )
        except (SecurityError, OverflowError) as error:
            message = f"The chat template does what its sandbox forbids: {error}"
            raise UnsafeCheckpoint(message) from error
        except TemplateSyntaxError as error:
            raise ModelLoadError(f"The chat template is malformed: {error}") from error
        except Exception:  # it may accept other turns than this one
            return

    def _placeholders_in(self, value: Any) -> dict[str, str]:
        """Return the special tokens that a client's values spell out, longest first.

        Each comes with its placeholder, a character that the values do not hold.

        Raises:
            RequestError: The values hold so many private-use characters that too few are left.
        """
        everything = _json_text(value)
        found = [text for text, spelled in self._special_texts.items() if spelled in everything]
        if not found:
            return {}
        free = filterfalse(set(everything).__contains__, map(chr, _PLACEHOLDERS))
        placeholders = dict(zip(sorted(found, key=len, reverse=True), free, strict=False))
        if len(placeholders) < len(found):
            message = "The messages hold too many private-use characters."
            raise RequestError(message, param="messages")
        return placeholders

    def _encode_rendered(self, rendered: str, text_of: Mapping[str, str]) -> list[int]:
        """Encode a rendered chat; placeholders become the plain text they stand for."""
        if not text_of:
            return self.encode(rendered, add_special_tokens=False)
        ids: list[int] = []
        for piece in re.split(f"([{''.join(text_of)}])", rendered):
            plain = text_of.get(piece)
            # Cut after its first character, a special token is no longer recognized.
            for part in (piece,) if plain is None else (plain[0], plain[1:]):
                ids += self._encode_next(part) if ids else self._encode_plainly(part)
        return ids

    def _encode_plainly(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False)

    def _encode_next(self, text: str) -> list[int]:
        """Encode a text that follows another one, without the space that begins texts."""
        if not self.strips_first_space:
            return self._encode_plainly(text)
        before, both = self._encode_plainly("\n"), self._encode_plainly(f"\n{text}")
        is_apart = both[: len(before)] == before
        return both[len(before) :] if is_apart else self._encode_plainly(text)


def _json_text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def load_tokenizer(directory: Path, chat: ChatConfig | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory.

    Args:
        chat: Its chat template, if that is not to be the checkpoint's own, and what that is told.

    Raises:
        ModelLoadError: There is none that can be read, or its chat template cannot be used.
    """
    if not (directory / "tokenizer.json").is_file():
        raise ModelLoadError(f"{directory} has no tokenizer.json.")
    # Texts are encoded in the thread that asks: a pool of threads would compete with the worker.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import PreTrainedTokenizerFast

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:  # the Rust side raises bare Exception for a malformed file
        raise ModelLoadError(f"The tokenizer in {directory} cannot be read: {error}") from error
    chat = chat or ChatConfig()
    if chat.template is not None:
        tokenizer.chat_template = chat.template
    loaded = Tokenizer(tokenizer, eos_token_ids(directory), chat.variables)
    loaded.check_chat_template()
    return loaded


def _refusal(error: Exception, *, continues: bool) -> RequestError:
    """Return what a client is told about a template's failure.

    What a template says through `raise_exception` was written for whoever sends messages, so it is
    passed on. Any other text is the renderer's own and may reveal our files, so it is not.
    """
    if type(error) is TemplateError and error.message:
        said = " ".join(error.message.split())[:_MAX_REFUSAL_CHARS]
        return RequestError(f"The chat template refuses these messages: {said}", param="messages")
    if continues and isinstance(error, ValueError):
        message = "continue_final_message: the chat template does not end with the last message."
        return RequestError(message, param="continue_final_message")
    return RequestError("The chat template cannot render these messages.", param="messages")


def _replaced(value: Any, placeholders: Mapping[str, str]) -> Any:
    """Return a copy of JSON-like data with texts replaced in all strings, keys included."""
    if not placeholders:
        return value
    if isinstance(value, str):
        for text, placeholder in placeholders.items():
            value = value.replace(text, placeholder)
        return value
    if isinstance(value, Mapping):
        return {
            _replaced(key, placeholders): _replaced(item, placeholders)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_replaced(item, placeholders) for item in value]
    return value
