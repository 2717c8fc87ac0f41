"""The model's own output, generated plainly in large batches through the offline engine; resumes by
counting tokens.

Heads must know the text people get, so the groups of prompts differ: each has one temperature of a
fixed list, greedy most often; every fourth is answered at length; and some answers that ended by
themselves get a second question, so that later turns of a chat are seen, too.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import FinishReason, GenerationRequest, SamplingParams
from training.generations import (
    Generation,
    append_generations,
    num_output_tokens,
    read_generations,
)
from training.progress import ProgressReport
from training.prompts import FOLLOW_UPS, Prompt

TEMPERATURES = (0.0, 0.8, 0.0, 0.5, 1.0)
_LENGTHS = (1, 1, 1, 3)  # times max_new_tokens; no common divisor with the temperatures' number
_SECOND_TURN_EVERY = 4
_BATCH = 64
_GROUP = 4 * _BATCH
_LONGEST_PROMPT = 1024

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class _Question:
    """A chat that waits for an answer."""

    task: str
    messages: Messages  # none: the text itself is the prompt
    prompt_ids: list[int]

    @property
    def is_first_turn(self) -> bool:
        """Whether it is a chat's only question so far."""
        return len(self.messages) == 1


def generate(
    model: ModelConfig,
    prompts: Sequence[Prompt],
    path: Path,
    num_tokens: int,
    max_new_tokens: int,
) -> None:
    """Append generations to `path` until it holds `num_tokens` output tokens or the prompts are
    used up.
    """
    rows = read_generations(path)
    done = num_output_tokens(rows)
    if done >= num_tokens:
        return
    used = {_key(row.prompt_ids) for row in rows}
    engine = OfflineEngine(
        EngineConfig(
            model=model,
            cache=CacheConfig(),
            scheduler=SchedulerConfig(max_num_seqs=_BATCH),
            exits=ExitsConfig(enabled=False),
            worker="inline",
        )
    )
    interviewer = _Interviewer(
        AutoTokenizer.from_pretrained(str(model.directory)),
        engine.info.max_model_len - max_new_tokens * max(_LENGTHS),
    )
    asked = [question for prompt in prompts for question in interviewer.first_turn(prompt)]
    waiting = [question for question in asked if _key(question.prompt_ids) not in used]
    num_groups = len(rows) // _GROUP  # a resumed run goes on in the cycle
    with ProgressReport("generating", num_tokens, "tokens") as report:
        report.update(done)
        follow_ups: list[_Question] = []
        while (waiting or follow_ups) and done < num_tokens:
            group, waiting = follow_ups + waiting[:_GROUP], waiting[_GROUP:]
            temperature = TEMPERATURES[num_groups % len(TEMPERATURES)]
            length = max_new_tokens * _LENGTHS[num_groups % len(_LENGTHS)]
            new, follow_ups = [], []
            for number, (question, row, is_over) in enumerate(
                _answered(engine, group, temperature, length)
            ):
                new.append(row)
                if is_over and question.is_first_turn and number % _SECOND_TURN_EVERY == 0:
                    follow_ups += interviewer.second_turn(question, row)
            append_generations(path, new)
            num_groups += 1
            done += num_output_tokens(new)
            report.update(done)


class _Interviewer:
    """Asks, where the question leaves room for the longest answer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int) -> None:
        """Args:
        room: Tokens of the context that a prompt may take.

        Raises:
            ValueError: if there are none.
        """
        if room < 1:
            raise ValueError("--max-new-tokens: the model's context leaves no room for a prompt")
        self._tokenizer = tokenizer
        self._longest = min(room, _LONGEST_PROMPT)

    def first_turn(self, prompt: Prompt) -> list[_Question]:
        """As a user's message; the text itself where the model has no chat template."""
        if not self._tokenizer.chat_template:
            prompt_ids = list(self._tokenizer(prompt.text)["input_ids"])
            return self._if_it_fits(_Question(prompt.task, [], prompt_ids))
        return self._ask(prompt.task, [{"role": "user", "content": prompt.text}])

    def second_turn(self, question: _Question, answer: Generation) -> list[_Question]:
        """A further question to an answer."""
        text = self._tokenizer.decode(answer.output_ids, skip_special_tokens=True)
        follow_up = FOLLOW_UPS[len(answer.output_ids) % len(FOLLOW_UPS)]
        turns = [{"role": "assistant", "content": text}, {"role": "user", "content": follow_up}]
        return self._ask("chat", question.messages + turns)

    def _ask(self, task: str, messages: Messages) -> list[_Question]:
        encoded = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        return self._if_it_fits(_Question(task, messages, list(encoded["input_ids"])))

    def _if_it_fits(self, question: _Question) -> list[_Question]:
        return [question] if 0 < len(question.prompt_ids) <= self._longest else []


def _answered(
    engine: OfflineEngine, group: Sequence[_Question], temperature: float, max_new_tokens: int
) -> Iterator[tuple[_Question, Generation, bool]]:
    """Each question, the model's answer, and whether that ended by itself."""
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(question.prompt_ids),
            sampling=SamplingParams(temperature=temperature, seed=index, max_tokens=max_new_tokens),
        )
        for index, question in enumerate(group)
    ]
    for question, result in zip(group, engine.generate(requests), strict=True):
        if len(result.token_ids) > 1:
            row = Generation(
                question.task, question.prompt_ids, list(result.token_ids), temperature
            )
            yield question, row, result.finish_reason is FinishReason.STOP


def _key(prompt_ids: Sequence[int]) -> str:
    return hashlib.sha256(str(list(prompt_ids)).encode()).hexdigest()
