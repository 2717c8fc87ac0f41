"""The model's own output, generated plainly in large batches through the offline engine, with its
hidden states recorded on the way; resumes by counting tokens.

Heads must know the text people get, so the groups of prompts differ: each has one temperature of a
fixed list, greedy most often; every fourth is answered at length; and some answers that ended by
themselves get a second question, so that later turns of a chat are seen, too.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.spec import ModelSpec
from engine.offline import OfflineEngine
from engine.request import FinishReason, GenerationRequest, SamplingParams
from training.generations import (
    Generation,
    append_generations,
    is_held_out,
    num_output_tokens,
    read_generations,
)
from training.progress import ProgressReport
from training.prompts import FOLLOW_UPS, Prompt
from training.record import RecordingWorker
from training.states import RowStates, ShardWriter, StateShards

logger = logging.getLogger(__name__)

_TEMPERATURES = (0.0, 0.8, 0.0, 0.5, 1.0)
_LENGTHS = (1, 1, 1, 3)  # times max_new_tokens; no common divisor with the temperatures' number
_SECOND_TURN_EVERY = 4
_BATCH = 64
_GROUP = 2 * _BATCH
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


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the model said."""

    question: _Question
    row: Generation
    is_over: bool  # it ended by itself
    states: RowStates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """What is generated and collected, and where."""

    model: ModelConfig
    work: Path
    num_tokens: int  # self-generated
    max_new_tokens: int  # per prompt; every fourth group may have three times as many
    max_bytes: int  # in memory at once: states, with keys and values while generating

    @property
    def generations(self) -> Path:
        """The file of what was generated."""
        return self.work / "generations.jsonl"

    @property
    def states(self) -> Path:
        """Directory of the states of what heads are trained on."""
        return self.work / "hidden"

    @property
    def held_out_states(self) -> Path:
        """Directory of the states of what they are measured on."""
        return self.work / "held-out"


def generate(
    options: GenerationOptions,
    prompts: Sequence[Prompt],
    exit_layers: Sequence[int],
    decoder: Decoder | None = None,
) -> None:
    """Append generations until there are as many tokens as wanted or the prompts are used up.

    Args:
        exit_layers: Where states are recorded; what is missing is left to `collect`.
        decoder: The model, if it is loaded already.

    Raises:
        ModelLoadError: if the model cannot be run.
        ValueError: if its context leaves no room for a prompt.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    path, max_new_tokens = options.generations, options.max_new_tokens
    rows = read_generations(path)
    done = num_output_tokens(rows)
    if done >= options.num_tokens:
        return
    used = {_key(row.prompt_ids) for row in rows}
    config = _engine_config(options, exit_layers)
    worker = RecordingWorker(config, exit_layers, decoder)
    engine = OfflineEngine(config, worker)
    recorder = _Recorder(options, len(rows))
    interviewer = _Interviewer(
        AutoTokenizer.from_pretrained(str(options.model.directory)),
        engine.info.max_model_len - max_new_tokens * max(_LENGTHS),
    )
    asked = [question for prompt in prompts for question in interviewer.first_turn(prompt)]
    waiting = [question for question in asked if _key(question.prompt_ids) not in used]
    num_groups = len(rows) // _GROUP  # a resumed run goes on in the cycle
    with ProgressReport("generating", options.num_tokens, "tokens") as report:
        report.update(done)
        follow_ups: list[_Question] = []
        while (waiting or follow_ups) and done < options.num_tokens:
            group, waiting = follow_ups + waiting[:_GROUP], waiting[_GROUP:]
            temperature = _TEMPERATURES[num_groups % len(_TEMPERATURES)]
            length = max_new_tokens * _LENGTHS[num_groups % len(_LENGTHS)]
            answers = list(_answered(engine, worker, group, temperature, length))
            follow_ups = [
                follow_up
                for answer in answers[::_SECOND_TURN_EVERY]
                if answer.is_over and answer.question.is_first_turn
                for follow_up in interviewer.second_turn(answer.question, answer.row)
            ]
            append_generations(path, [answer.row for answer in answers])
            recorder.add([answer.states for answer in answers])
            num_groups += 1
            done += num_output_tokens([answer.row for answer in answers])
            report.update(done)
    recorder.flush()
    if done < options.num_tokens:
        logger.warning("the prompts are used up: %d of %d tokens", done, options.num_tokens)


class _Recorder:
    """Sorts states into those to train on and those held out."""

    def __init__(self, options: GenerationOptions, num_rows: int) -> None:
        num_held_out = sum(is_held_out(index) for index in range(num_rows))
        self._next = num_rows
        self._writers = {
            False: ShardWriter(StateShards(options.states), num_rows - num_held_out),
            True: ShardWriter(StateShards(options.held_out_states), num_held_out),
        }

    def add(self, states: Sequence[RowStates | None]) -> None:
        """Of the next generations."""
        for each in states:
            self._writers[is_held_out(self._next)].add(each)
            self._next += 1

    def flush(self) -> None:
        """Nothing more will come."""
        for writer in self._writers.values():
            writer.flush()


def _engine_config(options: GenerationOptions, exit_layers: Sequence[int]) -> EngineConfig:
    """Plain decoding, with no more keys and values than the longest chats can need."""
    model = options.model
    longest = _LONGEST_PROMPT + options.max_new_tokens * max(_LENGTHS)
    spec = ModelSpec.from_directory(model.directory)
    # States lie beside keys and values, token by token: the memory is for both.
    num_values = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size
    share = num_values / (num_values + (len(exit_layers) + 1) * spec.hidden_size)
    return EngineConfig(
        model=replace(model, max_model_len=min(longest, spec.max_position_embeddings)),
        cache=CacheConfig(kv_cache_memory_bytes=int(options.max_bytes * share)),
        scheduler=SchedulerConfig(max_num_seqs=_BATCH),
        exits=ExitsConfig(enabled=False, max_draft_tokens=0),
        worker="inline",
    )


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
    engine: OfflineEngine,
    worker: RecordingWorker,
    group: Sequence[_Question],
    temperature: float,
    max_new_tokens: int,
) -> Iterator[_Answer]:
    """What the model says to each question; one token is no answer."""
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(question.prompt_ids),
            sampling=SamplingParams(temperature=temperature, seed=index, max_tokens=max_new_tokens),
        )
        for index, question in enumerate(group)
    ]
    results = engine.generate(requests)
    for question, result, states in zip(group, results, worker.take_states(), strict=True):
        if len(result.token_ids) > 1:
            row = Generation(
                question.task, question.prompt_ids, list(result.token_ids), temperature
            )
            yield _Answer(question, row, result.finish_reason is FinishReason.STOP, states)


def _key(prompt_ids: Sequence[int]) -> str:
    return hashlib.sha256(str(list(prompt_ids)).encode()).hexdigest()
