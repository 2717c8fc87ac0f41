"""Generates the model's own output, in large batches and without drafts.

On a CPU the offline engine generates, and the hidden states are recorded on the way. On a GPU
`DeviceGenerator` does, which needs little of the host, and the states are left to `collect`. A
killed run resumes where it was by counting the tokens on file.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transformers import AutoTokenizer

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.spec import ModelSpec
from engine.offline import OfflineEngine
from engine.request import FinishReason, GenerationRequest, SamplingParams
from training import gpu
from training.device_generator import DeviceGenerator
from training.generations import (
    Generation,
    HeldOut,
    append_generations,
    num_output_tokens,
    read_generations,
)
from training.progress import ProgressReport
from training.prompts import Prompt
from training.questions import LONGEST_PROMPT, MOST_LENGTHS, Agenda, Ask, Interviewer, Question
from training.record import RecordingWorker
from training.states import RowStates, ShardWriter, StateShards

logger = logging.getLogger(__name__)

_BATCH = 64
_GROUP = 2 * _BATCH
_DEVICE_BATCH = 1024


@dataclass(frozen=True, slots=True)
class _Answer:
    """The model's answer to a question, with the recorded states if there are any."""

    question: Question
    row: Generation
    is_over: bool  # it ended by itself, not at its length limit
    states: RowStates | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """The options of generation: the model, how much it generates, and where that is kept."""

    model: ModelConfig
    work: Path
    num_tokens: int  # self-generated
    max_new_tokens: int  # per prompt; in every fourth round three times as many
    max_bytes: int  # of memory for states, and for keys and values while generating
    is_shared: bool = False  # `work` has a directory for text of each origin, see `TextOrigin`

    @property
    def generations(self) -> Path:
        """The file that generations are appended to."""
        return self.work / "generations.jsonl"

    @property
    def states(self) -> Path:
        """The directory of the states that heads are trained on."""
        return self.work / "hidden"

    @property
    def held_out_states(self) -> Path:
        """The directory of the states that heads are measured on."""
        return self.work / "held-out"


def generate(
    options: GenerationOptions,
    prompts: Sequence[Prompt],
    exit_layers: Sequence[int],
    decoder: Decoder | None = None,
) -> None:
    """Append generations until there are enough tokens or the prompts are used up.

    Args:
        exit_layers: Layers that states are recorded at; missing states are left to `collect`.
        decoder: The model, if it is loaded already.

    Raises:
        ModelLoadError: if the model cannot be run.
        ValueError: if its context leaves no room for a prompt.
    """
    options.work.mkdir(parents=True, exist_ok=True)
    rows = read_generations(options.generations)
    done = num_output_tokens(rows)
    if done >= options.num_tokens:
        return
    spec = ModelSpec.from_directory(options.model.directory)
    longest_answer = options.max_new_tokens * MOST_LENGTHS
    longest = min(LONGEST_PROMPT + longest_answer, spec.max_position_embeddings)
    interviewer = Interviewer(
        AutoTokenizer.from_pretrained(str(options.model.directory)), longest - longest_answer
    )
    is_on_gpu = decoder is not None and gpu.is_used(decoder)
    agenda = Agenda(
        interviewer,
        prompts,
        rows,
        round_size=1 if is_on_gpu else _GROUP,
        max_new_tokens=options.max_new_tokens,
    )
    with ProgressReport("generating", options.num_tokens, "tokens") as report:
        report.update(done)
        if is_on_gpu:
            assert decoder is not None
            answered = _answered_on_device(options, agenda, decoder, longest, done)
        else:
            answered = _answered_by_engine(options, agenda, exit_layers, decoder, longest)
        recorder = _Recorder(options, rows)
        for answers in answered:
            append_generations(options.generations, [answer.row for answer in answers])
            recorder.add(answers)
            for answer in answers:
                if answer.is_over:
                    agenda.note(answer.question, answer.row)
            done += num_output_tokens([answer.row for answer in answers])
            report.update(done)
            if done >= options.num_tokens:
                break
    recorder.flush()
    if done < options.num_tokens:
        logger.warning("prompts used up: %d of %d tokens", done, options.num_tokens)


class _Recorder:
    """Writes states to shards, those to train on apart from those held out."""

    def __init__(self, options: GenerationOptions, rows: Sequence[Generation]) -> None:
        self._held_out = HeldOut()
        num_held_out = sum([self._held_out.takes(row) for row in rows])
        self._writers = {
            False: ShardWriter(StateShards(options.states), len(rows) - num_held_out),
            True: ShardWriter(StateShards(options.held_out_states), num_held_out),
        }

    def add(self, answers: Sequence[_Answer]) -> None:
        """Add the states of the next generations."""
        for each in answers:
            self._writers[self._held_out.takes(each.row)].add(each.states)

    def flush(self) -> None:
        """Write what is left when no more generations will come."""
        for writer in self._writers.values():
            writer.flush()


def _answered_by_engine(
    options: GenerationOptions,
    agenda: Agenda,
    exit_layers: Sequence[int],
    decoder: Decoder | None,
    longest: int,
) -> Iterator[list[_Answer]]:
    """Answer round by round with the offline engine, recording states."""
    config = _engine_config(options, exit_layers, longest)
    worker = RecordingWorker(config, exit_layers, decoder)
    engine = OfflineEngine(config, worker)
    while asks := agenda.next_round():
        requests = [
            GenerationRequest(
                request_id=str(ask.seed),
                prompt_token_ids=tuple(ask.question.prompt_ids),
                sampling=SamplingParams(
                    temperature=ask.temperature, seed=ask.seed, max_tokens=ask.max_new_tokens
                ),
            )
            for ask in asks
        ]
        results = engine.generate(requests)
        finished = zip(asks, results, worker.take_states(), strict=True)
        yield [
            answer
            for ask, result, states in finished
            for answer in _as_answer(
                ask, result.token_ids, result.finish_reason is FinishReason.STOP, states
            )
        ]


def _answered_on_device(
    options: GenerationOptions, agenda: Agenda, decoder: Decoder, longest: int, done: int
) -> Iterator[list[_Answer]]:
    """Answer on the GPU, without states, yielding answers as they end.

    No question is begun any more once the running answers are expected to give enough tokens.
    """
    generator = DeviceGenerator(
        decoder, max_rows=_DEVICE_BATCH, max_len=longest, max_bytes=options.max_bytes
    )
    asks: list[Ask] = []
    num_answers = num_tokens = 0

    def next_ask() -> Ask | None:
        mean = num_tokens / num_answers if num_answers else options.max_new_tokens
        if done + num_tokens + generator.num_running * mean >= options.num_tokens:
            return None
        if not asks:
            asks.extend(agenda.next_round())
        return asks.pop(0) if asks else None

    for ended in generator.answers(next_ask):
        answers = [
            answer
            for each in ended
            for answer in _as_answer(each.ask, each.token_ids, each.is_over, None)
        ]
        num_answers += len(answers)
        num_tokens += num_output_tokens([answer.row for answer in answers])
        yield answers


def _as_answer(
    ask: Ask, token_ids: Sequence[int], is_over: bool, states: RowStates | None
) -> list[_Answer]:
    """Return the answer in a list, which is empty for output of fewer than two tokens."""
    if len(token_ids) < 2:
        return []
    question = ask.question
    row = Generation(question.task, question.prompt_ids, list(token_ids), ask.temperature)
    return [_Answer(question, row, is_over, states)]


def _engine_config(
    options: GenerationOptions, exit_layers: Sequence[int], longest: int
) -> EngineConfig:
    """Configure plain decoding, with the context limited to the longest chat."""
    model = options.model
    spec = ModelSpec.from_directory(model.directory)
    # Every slot of the KV cache has room for a token's states as well: both share the memory.
    num_values = 2 * spec.num_layers * spec.num_kv_heads * spec.head_size
    share = num_values / (num_values + (len(exit_layers) + 1) * spec.hidden_size)
    return EngineConfig(
        model=replace(model, max_model_len=longest),
        cache=CacheConfig(kv_cache_memory_bytes=int(options.max_bytes * share)),
        scheduler=SchedulerConfig(max_num_seqs=_BATCH),
        exits=ExitsConfig(enabled=False, max_draft_tokens=0),
        worker="inline",
    )
