"""A fake model, with a token per byte, that generates the text its prompt asks for."""

import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

from fake_engine import ByteTokenizer
from fake_worker import FakeWorker
from tokenizers import Tokenizer, decoders, models

from engine.plan import RowResult, StepPlan, StepResult, WorkerInfo
from engine.vocabulary import byte_alphabet

_BEGIN, _END = 2, 3  # bytes around the text to repeat
EOS_ID = ByteTokenizer.eos_token_ids[0]
SEED = 7  # what requests are sent with, unless a row is about seeds
UNLIKELY = ord("~")  # a token whose probability is reported as 0


def say(text: str | bytes) -> str | list[int]:
    """Return a prompt that makes the parrot say `text` and stop; for bytes, a list of token ids."""
    if isinstance(text, str):
        return f"\x02{text}\x03"
    return [_BEGIN, *text, _END]


def write_tokenizer(directory: Path, **config: str) -> None:
    """Write the parrot's tokens as a tokenizer.json, which compiling structures needs."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_alphabet(), merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<{number}>" for number in range(256, ByteTokenizer.vocab_size)])
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


class Speller(ByteTokenizer):
    """A `ByteTokenizer` that the detokenizer can use too."""

    strips_first_space = False


class Parrot(FakeWorker):
    """A worker that repeats the text between the marks, or without marks says hashed letters."""

    def __init__(
        self,
        *,
        num_blocks: int = 96,
        acceptance: float = 0.5,
        max_draft_tokens: int = 3,
        step_time_s: float = 0.0,
        max_model_len: int = 512,
        block_size: int = 8,
    ) -> None:
        super().__init__(
            num_blocks=num_blocks,
            block_size=block_size,
            max_model_len=max_model_len,
            max_draft_tokens=max_draft_tokens,
            acceptance=acceptance,
            step_time_s=step_time_s,
        )
        self.started: list[tuple[int, ...]] = []  # all prompts that it was given

    @property
    def info(self) -> WorkerInfo:
        """Facts about the model, with this tokenizer's vocabulary."""
        return self._info

    @info.setter
    def info(self, info: WorkerInfo) -> None:
        vocabulary = {"vocab_size": ByteTokenizer.vocab_size, "eos_token_ids": [EOS_ID]}
        fields = {name: getattr(info, name) for name in WorkerInfo.__dataclass_fields__}
        self._info = WorkerInfo(**{**fields, **vocabulary})

    def execute(self, plan: StepPlan) -> StepResult:
        """See `FakeWorker.execute`."""
        self.started += [
            tuple(start.token_ids[: start.num_prompt_tokens]) for start in plan.started
        ]
        result = super().execute(plan)
        for row in result.rows:
            _make_unlikely(row)
        return result

    def text_after(self, prompt: str, max_tokens: int) -> str:
        """Return the first `max_tokens` tokens that it says after a prompt without marks."""
        context = list(prompt.encode())
        for _ in range(max_tokens):
            context.append(self.next_token(context, SEED, ()))
        return bytes(context[-max_tokens:]).decode()

    def next_token(self, context: Sequence[int], seed: int, forbidden: Collection[int]) -> int:
        """See `FakeWorker.next_token`."""
        if _BEGIN in context and _END in context:
            begin, end = context.index(_BEGIN), context.index(_END)
            script = context[begin + 1 : end]
            said = [token for token in context[end + 1 :] if token < 256]
            token = script[len(said)] if len(said) < len(script) else EOS_ID
            return ord(".") if token in forbidden else token
        digest = crc32(b"".join(token.to_bytes(2) for token in context), seed & 0xFFFFFFFF)
        return ord("a") + digest % 26


def _make_unlikely(row: RowResult) -> None:
    top = ((UNLIKELY, float("-inf")),)
    row.logprobs = tuple(
        replace(entry, logprob=float("-inf"), top=top) if entry.token_id == UNLIKELY else entry
        for entry in row.logprobs
    )
