"""`adadecode bench rounding`: how far do smaller weights and rounded activations lead from float32?

Reads every prompt, as a chat, with each way of keeping weights and activations on a CPU, and
compares what the model says of every next token with what it says in float32. Early exits have no
part in it: they change no token of whichever form is served.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest import Entry
from benchmarks.machine import describe_machine, print_facts
from benchmarks.prompts import choose_prompts, encode_prompts
from benchmarks.single_stream import BLOCK_SIZE, num_blocks, stream_batch
from engine.checkpoint import resolve_model
from engine.checkpoint.directory import has_blocks
from engine.config import ModelConfig
from engine.model.decoder import Decoder, Segment
from engine.worker.kv_cache import allocate_cache
from training.pipeline import load_decoder
from training.progress import ProgressReport

_MOST_TOKENS = 512  # read of a prompt, so that its logits fit into memory


@dataclass(slots=True)
class Drift:
    """What was found over all tokens that follow others."""

    tokens: int = 0
    surprise: float = 0.0  # nats, of the prompts' own tokens
    divergence: float = 0.0  # nats, Kullback-Leibler from float32
    same_choices: int = 0  # tokens before which the likeliest next token is float32's

    def add(self, logits: Tensor, expected: Tensor, followers: Tensor) -> None:
        """Add a prompt: logits [T, V] of a form and of float32, and the T tokens that follow."""
        ours, theirs = logits.log_softmax(-1), expected.log_softmax(-1)
        self.tokens += len(followers)
        self.surprise -= float(ours.gather(1, followers[:, None]).sum())
        self.divergence += float((theirs.exp() * (theirs - ours)).sum())
        self.same_choices += int((logits.argmax(-1) == expected.argmax(-1)).sum())

    def row(self) -> tuple[str, ...]:
        """Return the cells of the table's row."""
        return (
            f"{exp(self.surprise / self.tokens):.3f}",
            f"{self.divergence / self.tokens:.5f}",
            f"{self.same_choices / self.tokens:.2%}",
        )


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: when there is nothing to read.
        EngineError: when the model cannot be loaded.
    """
    directory = resolve_model(args.model)
    entries = encode_prompts(choose_prompts(args.prompts, args.num_prompts), directory)
    print_facts(describe_machine() | {"prompts": str(len(entries))})
    float32 = ModelConfig(
        directory=directory, device="cpu", quantization="none", num_threads=args.threads
    )
    reference = load_decoder(float32)
    _print_row(("form", "perplexity", "divergence", "same choice"))
    for name, options in _forms(directory):
        decoder = load_decoder(
            ModelConfig(directory=directory, device="cpu", num_threads=args.threads, **options)
        )
        _print_row((name, *_drift(decoder, reference, entries, name).row()))
    return 0


def _print_row(cells: Sequence[str]) -> None:
    first, *others = cells
    print(f"{first:<32}" + "".join(f"{cell:>14}" for cell in others), flush=True)


def _forms(directory: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and the model's options of each form; a file's blocks stay what they are."""
    yield "float32", {"quantization": "none"}
    yield "bfloat16", {"quantization": "none", "dtype": "bfloat16"}
    for quantization in ("auto",) if has_blocks(directory) else ("int8", "q4"):
        name = "file's blocks" if quantization == "auto" else quantization
        yield name, {"quantization": quantization}
        options = {"quantization": quantization, "activation_quantization": "int8"}
        yield f"{name}, int8 activations", options


@torch.inference_mode()
def _drift(decoder: Decoder, reference: Decoder, entries: Sequence[Entry], name: str) -> Drift:
    drift = Drift()
    with ProgressReport(name, len(entries), "prompts") as progress:
        for done, entry in enumerate(entries, start=1):
            token_ids = torch.tensor(entry.token_ids[:_MOST_TOKENS], dtype=torch.int32)
            expected = _logits(reference, token_ids[:-1])
            drift.add(_logits(decoder, token_ids[:-1]), expected, token_ids[1:].long())
            progress.update(done)
    return drift


def _logits(decoder: Decoder, token_ids: Tensor) -> Tensor:
    """Return the logits [T, V] after each of a prompt's tokens."""
    count, spec = len(token_ids), decoder.spec
    dtype, device = decoder.ops.dtype, decoder.ops.device
    cache = allocate_cache(spec, num_blocks(count), BLOCK_SIZE, dtype=dtype, device=device)
    batch = stream_batch(0, count)
    hidden = decoder.run(decoder.embed(token_ids), Segment(0, spec.num_layers), cache, batch)
    return decoder.logits(hidden)
