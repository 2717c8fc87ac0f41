"""What the parts of the benchmark share: the device, the models, and workers on them."""

import gc
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.gpu.generation import Prompt
from benchmarks.gpu.shapes import LLAMA_8B, SMOLLM_135M, TINY, Shape, random_decoder, write_heads
from engine.config import CacheConfig, EngineConfig, ExitsConfig, ModelConfig, SchedulerConfig
from engine.model.decoder import Decoder
from engine.model.ops.interface import Ops
from engine.model.spec import ModelSpec
from engine.offline import OfflineEngine
from engine.worker.backend import select_ops
from engine.worker.drafter import Drafter
from engine.worker.worker import ModelWorker

_CACHE_BYTES = 4 * 2**30


@dataclass(slots=True, kw_only=True)
class Model:
    """A model of some shape with random weights, which are made when they are first needed."""

    shape: Shape
    directory: Path
    ops: Ops
    _decoder: Decoder | None = None

    @property
    def spec(self) -> ModelSpec:
        """The model's sizes, read from its config.json."""
        return ModelSpec.from_directory(self.directory)

    @property
    def decoder(self) -> Decoder:
        """The decoder with random weights, on the device."""
        if self._decoder is None:
            self._decoder = random_decoder(self.shape, self.directory, self.ops)
        return self._decoder

    @property
    def pass_bytes(self) -> int:
        """Bytes of the weights that one pass reads: all but the embedding, of which it reads a row.

        An LM head that is tied to the embedding is read like any other.
        """
        sizes = {name: out * inner for name, (out, inner) in self.linears.items()}
        head = sizes.pop("lm_head")
        return (self.shape.layers * sum(sizes.values()) + head) * self.ops.dtype.itemsize

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """The shapes [out, in] of a layer's weights and of the LM head."""
        s = self.shape
        size = s.hidden // s.heads
        return {
            "gate_up": (2 * s.feed_forward, s.hidden),
            "down": (s.hidden, s.feed_forward),
            "qkv": ((s.heads + 2 * s.kv_heads) * size, s.hidden),
            "output": (s.hidden, s.heads * size),
            "lm_head": (s.vocabulary, s.hidden),
        }

    def prompt(self, num_tokens: int, number: int = 0) -> Prompt:
        """Return random token ids, different ones for every number."""
        dice = random.Random(number)
        return tuple(dice.randrange(2, self.shape.vocabulary) for _ in range(num_tokens))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The settings of one run of the benchmark."""

    device: torch.device
    is_quick: bool  # tiny shapes and few tokens, to see whether everything runs
    model: Path | None  # directory of SmolLM2-135M, if it is here
    prompts: Path | None
    folder: Path  # for temporary files
    tiles: Path  # file that measured tiles are written to

    @property
    def is_cuda(self) -> bool:
        """Whether the device is a GPU, so that the figures count."""
        return self.device.type == "cuda"

    @property
    def context(self) -> int:
        """The number of tokens of a prompt."""
        return 40 if self.is_quick else 1024

    @property
    def length(self) -> int:
        """The number of tokens to generate."""
        return 8 if self.is_quick else 128

    @property
    def exit_layers(self) -> list[int]:
        """The exit layers of the big model, each of which is measured alone."""
        return [2, 4] if self.is_quick else [4, 8, 16]

    @cached_property
    def big(self) -> Model:
        """The model with the shape of Llama 3.1 8B."""
        return self._random(TINY if self.is_quick else LLAMA_8B)

    @cached_property
    def small(self) -> Model:
        """The model with the shape of SmolLM2-135M."""
        return self._random(TINY if self.is_quick else SMOLLM_135M)

    def config(self, directory: Path, *, max_rows: int = 64, **changes: object) -> EngineConfig:
        """Return the configuration of a worker on this device.

        Args:
            changes: `exits`, or fields of `ModelConfig`.
        """
        model: dict[str, object] = {
            "directory": directory,
            "device": self.device.type,
            "num_threads": 1,  # on a CPU, which only checks that everything runs
        }
        exits = changes.pop("exits", ExitsConfig(lookup=False))
        assert isinstance(exits, ExitsConfig)
        return EngineConfig(
            model=ModelConfig(**(model | changes)),  # type: ignore[arg-type]
            cache=CacheConfig(kv_cache_memory_bytes=1 << 24 if self.is_quick else _CACHE_BYTES),
            scheduler=SchedulerConfig(max_num_seqs=max_rows, prefix_caching=False),
            exits=exits,
        )

    def heads(self, model: Model, exit_layers: Sequence[int]) -> Path:
        """Write untrained heads for a random model, and return their directory."""
        name = "-".join(map(str, (model.shape.name, *exit_layers)))
        return write_heads(model.shape, exit_layers, self.folder / f"heads-{name}")

    def engine(
        self,
        model: Model,
        drafter: Drafter | None = None,
        *,
        decoder: Decoder | None = None,
        heads: Path | None = None,
        max_rows: int = 64,
        enforce_eager: bool = False,
    ) -> OfflineEngine:
        """Make an engine for a random model, which decodes plainly without a drafter or heads.

        The worker does not check whether rows are exact, which takes a second and would make it
        refuse to start: that is up to the part `rows`, and figures count in any case.
        """
        exits = ExitsConfig(heads=heads, lookup=False)
        config = self.config(
            model.directory,
            max_rows=max_rows,
            exits=exits,
            enforce_eager=enforce_eager,
            exact=False,
        )
        worker = ModelWorker(config, drafter=drafter, decoder=decoder or model.decoder)
        return OfflineEngine(config, worker)

    def release(self) -> None:
        """Free device memory that is no longer referenced."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()

    def _random(self, shape: Shape) -> Model:
        directory = shape.write(self.folder / shape.name)
        config = self.config(directory)
        return Model(
            shape=shape,
            directory=directory,
            ops=select_ops(config, ModelSpec.from_directory(directory)),
        )


def num_different(some: Sequence[Sequence[int]], others: Sequence[Sequence[int]]) -> int:
    """Return how many outputs differ."""
    return sum(tuple(a) != tuple(b) for a, b in zip(some, others, strict=True))
