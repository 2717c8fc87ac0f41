"""The model's own output, generated plainly in large batches through the offline engine; resumes by
counting tokens.

Each group of prompts gets one temperature from a fixed list, greedy most often: heads must know
both the text people get at temperature 0 and the text they get when sampling.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.offline import OfflineEngine
from engine.request import GenerationRequest, SamplingParams
from training.generations import (
    Generation,
    append_generations,
    num_output_tokens,
    read_generations,
)
from training.progress import ProgressReport
from training.prompts import Prompt

TEMPERATURES = (0.0, 0.8, 0.0, 0.5, 1.0)
_BATCH = 64
_GROUP = 4 * _BATCH
_LONGEST_PROMPT = 1024


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
    tokenizer = AutoTokenizer.from_pretrained(str(model.directory))
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
    waiting = []
    for prompt in prompts:
        message = [{"role": "user", "content": prompt.text}]
        ids = tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
        prompt_ids = list(ids["input_ids"])
        if len(prompt_ids) <= _LONGEST_PROMPT and _key(prompt_ids) not in used:
            waiting.append((prompt.task, prompt_ids))
    with ProgressReport("generating", num_tokens, "tokens") as report:
        report.update(done)
        for number, start in enumerate(range(0, len(waiting), _GROUP)):
            temperature = TEMPERATURES[number % len(TEMPERATURES)]
            group = waiting[start : start + _GROUP]
            new = _generate_group(engine, group, temperature, max_new_tokens)
            append_generations(path, new)
            done += num_output_tokens(new)
            report.update(done)
            if done >= num_tokens:
                break


def _generate_group(
    engine: OfflineEngine,
    group: Sequence[tuple[str, list[int]]],
    temperature: float,
    max_new_tokens: int,
) -> list[Generation]:
    requests = [
        GenerationRequest(
            request_id=str(index),
            prompt_token_ids=tuple(prompt_ids),
            sampling=SamplingParams(temperature=temperature, seed=index, max_tokens=max_new_tokens),
        )
        for index, (_, prompt_ids) in enumerate(group)
    ]
    results = engine.generate(requests)
    return [
        Generation(task, prompt_ids, list(result.token_ids), temperature)
        for (task, prompt_ids), result in zip(group, results, strict=True)
        if len(result.token_ids) > 1
    ]


def _key(prompt_ids: Sequence[int]) -> str:
    return hashlib.sha256(str(list(prompt_ids)).encode()).hexdigest()
