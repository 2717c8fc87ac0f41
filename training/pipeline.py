"""The stages of `adadecode heads train`, and of `eval` and `search`, which share most of them.

The model's own output and its hidden states → heads → figures → files. A killed run resumes.

work directory:  made-by.json (see `text_origin`), generations.jsonl, hidden/, held-out/
                 → head-<layer>-<hash of its inputs>.pt
search:          search-<hash of its options>/ (see `search`), and a sample's states at all layers,
                 which are deleted when the search is over
output:          heads.safetensors, heads.json, report.html
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engine.config import EngineConfig, ModelConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import load_heads
from engine.model.spec import ModelSpec
from engine.worker.backend import (
    describe_numbers,
    keeps_blocks,
    limit_torch_threads,
    select_ops,
)
from training import gpu
from training.collect import ShardPaths, collect
from training.costs import measure_costs
from training.evaluate import HeadFigures, evaluate_head
from training.generate import GenerationOptions, generate
from training.generations import (
    Generation,
    choose_prompts,
    choose_sample,
    coverage,
    read_generations,
    reduced_vocabulary,
    split_held_out,
)
from training.head_factory import HeadFactory
from training.head_module import HeadModule
from training.head_training import HeadTraining
from training.heads_file import (
    Facts,
    data_facts,
    model_facts,
    read_facts,
    read_vocabulary,
    write_heads,
)
from training.prompts import Prompt
from training.replay import Forecast, Replay, form_opinions
from training.report import write_report
from training.search import Sample, Search, SearchOptions
from training.search_result import SearchResult
from training.selection import Comparison, Selection
from training.states import ROWS_PER_SHARD, StateShards
from training.text_origin import TextOrigin
from training.texts import GreedyTexts
from training.threads import torch_threads
from training.timing import Stopwatch, TimedRuns, Timekeeping
from training.train_head import TrainingConfig

logger = logging.getLogger(__name__)

_REPORTED_PROMPTS, _REPORTED_LENGTH = 8, 96
_FORECAST_SHARDS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """Which heads are trained, how, and where they are written."""

    name: str  # the model as the user named it
    output: Path
    exit_layers: Sequence[int]  # not read if they are searched for
    vocabulary_size: int | None  # None: searched for, or that of start_from
    training: TrainingConfig
    search: SearchOptions | None = None
    start_from: Path | None = None  # heads to train further, at their layers or others
    has_report: bool = True  # write a report, which needs timed runs


def train(
    generation: GenerationOptions, options: TrainOptions, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Run all stages that are not done yet, and return the heads' figures by exit layer.

    Raises:
        EngineError: if the model cannot be run.
        ValueError: if the options do not fit together, or the disk is too small.
    """
    decoder = load_decoder(generation.model)
    generation = _with_own_work(generation, prompts, decoder)
    found = None
    if options.search is not None:
        found = _search(generation, options.search, decoder, prompts)
        options = replace(
            options, exit_layers=found.exit_layers, vocabulary_size=found.vocabulary_size
        )
    if options.start_from is not None:
        load_heads(options.start_from, decoder)  # raises if they belong to other weights
    layers = options.exit_layers
    if not gpu.is_used(decoder):  # on a GPU most states are kept in its memory
        _check_disk(generation, decoder.spec.hidden_size, len(layers))
    generate(generation, prompts, layers, decoder)
    training, held_out = split_held_out(read_generations(generation.generations))
    if not training:
        raise ValueError("the model has generated too little text to train on: give more --prompts")
    held_out_paths = collect(decoder, held_out, layers, generation.held_out_states)
    ids = _vocabulary(options, training)
    factory = HeadFactory(decoder, ids, generation.max_bytes)
    head_training = HeadTraining(
        decoder=decoder,
        factory=factory,
        rows=training,
        held_out=held_out_paths,
        generation=generation,
        config=options.training,
        start_from=options.start_from,
    )
    trained = head_training.run(layers)
    heads = {layer: head for layer, (head, _) in trained.items()}
    figures = {layer: each for layer, (_, each) in trained.items()}
    facts = model_facts(options.name, decoder) | {
        "training": _training_facts(training, options),
        "vocabulary": {"size": len(ids), "coverage": round(coverage(training, ids), 4)},
    }
    if found is not None:
        facts["search"] = found.facts()
    write_heads(options.output, heads, figures, factory.token_ids, facts)
    if not options.has_report:
        return figures
    timed = _timed(generation, decoder, options.output, held_out)
    texts = GreedyTexts(*_first(held_out, held_out_paths))
    forecast = _forecast(factory, heads, figures, texts, decoder, generation.model)
    write_report(options.output, generation.model.directory, figures, found, forecast, timed)
    return figures


def _training_facts(rows: Sequence[Generation], options: TrainOptions) -> Facts:
    """Return what `heads.json` says of the training: the text, and the options."""
    facts = data_facts(rows) | asdict(options.training)
    if options.start_from is not None:
        facts["started_from"] = read_facts(options.start_from)["training"]
    return facts


def _timed(
    generation: GenerationOptions, decoder: Decoder, heads: Path, rows: Sequence[Generation]
) -> TimedRuns:
    """Time written heads by the wall clock, on the prompts of some generations."""
    prompts = choose_prompts(rows, _REPORTED_PROMPTS)
    wall = Timekeeping(clock="wall")
    stopwatch = Stopwatch(
        generation.model, decoder, prompts, _REPORTED_LENGTH, wall, generation.work
    )
    return stopwatch.time_greedy(heads)


def _first(
    rows: Sequence[Generation], paths: ShardPaths
) -> tuple[Sequence[Generation], ShardPaths]:
    """Return the first few shards, and the generations in them."""
    return rows[: _FORECAST_SHARDS * ROWS_PER_SHARD], paths[:_FORECAST_SHARDS]


def _forecast(
    factory: HeadFactory,
    heads: Mapping[int, HeadModule],
    figures: Mapping[int, HeadFigures],
    texts: GreedyTexts,
    decoder: Decoder,
    model: ModelConfig,
) -> Forecast:
    """Forecast the speed-up of trained heads, without prompt look-up."""
    with torch_threads(model):
        opinions = {
            layer: form_opinions(head, texts.at(layer), factory.token_ids)
            for layer, head in heads.items()
        }
    size = len(factory.token_ids)
    refinement_size = max(head.refinement_size for head in heads.values())
    costs = measure_costs(decoder, [size], refinement_size)
    calibration = {layer: each.calibration for layer, each in figures.items()}
    return Replay(decoder.spec, texts.states).forecast(
        opinions, calibration, costs.model(sorted(heads), size), costs.model([], size).plain(1)
    )


def _check_disk(generation: GenerationOptions, hidden_size: int, num_exits: int) -> None:
    """Refuse a run whose hidden states would not fit on the disk.

    Raises:
        ValueError: if they would not, with the space that they need.
    """
    needed = generation.num_tokens * hidden_size * 2 * (1 + num_exits)
    logger.info("hidden states take %.1f GiB in %s", needed / 2**30, generation.work)
    generation.work.mkdir(parents=True, exist_ok=True)
    have = sum(path.stat().st_size for path in generation.work.rglob("shard-*"))
    free = shutil.disk_usage(generation.work).free
    if needed > free + have:
        raise ValueError(
            f"--tokens {generation.num_tokens}: their hidden states take {needed / 2**30:.1f} GiB, "
            f"and {generation.work} has {free / 2**30:.1f} GiB free"
        )


def _vocabulary(options: TrainOptions, training: Sequence[Generation]) -> list[int]:
    """Return the token ids of the reduced vocabulary.

    Heads to start from may have seen more text than there is now, so their vocabulary is kept
    unless a size is asked for.
    """
    if options.vocabulary_size is not None:
        return reduced_vocabulary(training, options.vocabulary_size)
    assert options.start_from is not None, "a size, or heads to start from"
    token_ids: list[int] = read_vocabulary(options.start_from).tolist()
    return token_ids


def _search(
    generation: GenerationOptions,
    options: SearchOptions,
    decoder: Decoder,
    prompts: Sequence[Prompt],
) -> SearchResult:
    """Find exits and the size of the reduced vocabulary, unless an earlier run has done so."""
    small = replace(generation, num_tokens=min(options.num_tokens, generation.num_tokens))
    facts = [asdict(options), small.num_tokens, decoder.fingerprint]
    key = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()[:12]
    work = generation.work / f"search-{key}"
    path = work / "result.json"
    known = SearchResult.read(path)
    if known is not None:
        return known
    layers = list(range(decoder.spec.num_layers))
    _check_disk(small, decoder.spec.hidden_size, len(layers))
    generate(small, prompts, layers, decoder)
    rows = choose_sample(read_generations(generation.generations), options.num_tokens)
    training, held_out = split_held_out(rows)
    sample = Sample(
        training=training,
        held_out=held_out,
        training_paths=collect(decoder, training, layers, generation.states),
        held_out_paths=collect(decoder, held_out, layers, generation.held_out_states),
    )
    search = Search(generation.model, decoder, sample, options, work, generation.max_bytes)
    result = search.run()
    result.write(path)
    for directory in (generation.states, generation.held_out_states):
        StateShards(directory).keep_only(result.exit_layers)
    return result


def evaluate(
    generation: GenerationOptions, heads: Path, prompts: Sequence[Prompt]
) -> dict[int, HeadFigures]:
    """Measure trained heads on the model's answers to these prompts.

    Returns:
        Figures by exit layer.

    Raises:
        HeadsMismatch: if the heads belong to other weights.
    """
    decoder = load_decoder(generation.model)
    generation = _with_own_work(generation, prompts, decoder)
    exit_layers = load_heads(heads, decoder).exit_layers
    _, paths = _answers(generation, prompts, exit_layers, decoder)
    token_ids = read_vocabulary(heads)
    factory = HeadFactory(decoder, token_ids.tolist(), generation.max_bytes)
    return {
        layer: evaluate_head(factory.loaded(heads, layer), factory.shards(paths, layer), token_ids)
        for layer in exit_layers
    }


def choose_exits(
    generation: GenerationOptions,
    heads: Path,
    output: Path,
    num_candidates: int,
    timekeeping: Timekeeping,
    prompts: Sequence[Prompt],
) -> Comparison:
    """Write the trained heads whose exits are fastest on this machine.

    Returns:
        All choices of exits that were compared.

    Raises:
        HeadsMismatch: if the heads belong to other weights.
        ValueError: if the costs to compare by do not fit.
    """
    decoder = load_decoder(generation.model)
    generation = _with_own_work(generation, prompts, decoder)
    exit_layers = load_heads(heads, decoder).exit_layers
    rows, paths = _answers(generation, prompts, exit_layers, decoder)
    selection = Selection(generation, decoder, heads, rows, paths)
    found = selection.run(num_candidates, timekeeping)
    selection.write(found, output)
    return found


def _answers(
    generation: GenerationOptions,
    prompts: Sequence[Prompt],
    exit_layers: Sequence[int],
    decoder: Decoder,
) -> tuple[list[Generation], ShardPaths]:
    """Return the model's answers to the prompts, and the shards of their states."""
    generate(generation, prompts, exit_layers, decoder)
    rows, held_out = split_held_out(read_generations(generation.generations))
    paths = collect(decoder, rows, exit_layers, generation.states)
    paths += collect(decoder, held_out, exit_layers, generation.held_out_states)
    return rows + held_out, paths


def load_decoder(model: ModelConfig) -> Decoder:
    """Load the model on the configured device, in the numeric type that it is served in."""
    config = EngineConfig(model=model)
    ops = select_ops(config, ModelSpec.from_directory(model.directory))
    limit_torch_threads(config, ops)
    return Decoder.load(model.directory, ops, keep_blocks=keeps_blocks(model, ops))


def _with_own_work(
    generation: GenerationOptions, prompts: Sequence[Prompt], decoder: Decoder
) -> GenerationOptions:
    """Return the options with a work directory that holds no other text than theirs.

    Raises:
        ValueError: if the directory that was asked for holds some.
    """
    model = generation.model
    numbers = describe_numbers(model, decoder.ops)
    origin = TextOrigin.of(decoder, numbers, model.directory, prompts, generation.max_new_tokens)
    work = generation.work / origin.key if generation.is_shared else generation.work
    origin.claim(work)
    logger.info("work directory: %s", work)
    return replace(generation, work=work, is_shared=False)
