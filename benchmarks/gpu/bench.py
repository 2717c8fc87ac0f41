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
    """A shape, its directory, and the decoder once it is wanted."""

    shape: Shape
    directory: Path
    ops: Ops
    _decoder: Decoder | None = None

    @property
    def spec(self) -> ModelSpec:
        """As config.json has it."""
        return ModelSpec.from_directory(self.directory)

    @property
    def decoder(self) -> Decoder:
        """Random weights on the device."""
        if self._decoder is None:
            self._decoder = random_decoder(self.shape, self.directory, self.ops)
        return self._decoder

    @property
    def pass_bytes(self) -> int:
        """Weights that one pass reads: all but the embedding, of which it reads one row."""
        sizes = {name: out * inner for name, (out, inner) in self.linears.items()}
        head = sizes.pop("lm_head")
        return (self.shape.layers * sum(sizes.values()) + head) * self.ops.dtype.itemsize

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Weights [out, in] of a layer, and the head's."""
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
        """Random token ids, other ones for every number."""
        dice = random.Random(number)
        return tuple(dice.randrange(2, self.shape.vocabulary) for _ in range(num_tokens))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One run of the benchmark."""

    device: torch.device
    is_quick: bool  # tiny shapes, few tokens: does it run?
    model: Path | None  # SmolLM2-135M's directory, where it is
    prompts: Path | None
    folder: Path  # for what is made on the way
    tiles: Path  # where measured ones are written

    @property
    def is_cuda(self) -> bool:
        """Whether figures mean anything."""
        return self.device.type == "cuda"

    @property
    def context(self) -> int:
        """Tokens of a prompt."""
        return 40 if self.is_quick else 1024

    @property
    def length(self) -> int:
        """Tokens generated."""
        return 8 if self.is_quick else 128

    @property
    def exit_layers(self) -> list[int]:
        """Of the big model; each is measured alone."""
        return [2, 4] if self.is_quick else [4, 8, 16]

    @cached_property
    def big(self) -> Model:
        """Llama 3.1 8B's shape."""
        return self._random(TINY if self.is_quick else LLAMA_8B)

    @cached_property
    def small(self) -> Model:
        """SmolLM2-135M's shape."""
        return self._random(TINY if self.is_quick else SMOLLM_135M)

    def config(self, directory: Path, *, max_rows: int = 64, **changes: object) -> EngineConfig:
        """Of a worker on this device."""
        model: dict[str, object] = {
            "directory": directory,
            "device": self.device.type,
            "num_threads": 1,  # of a CPU, which is only asked whether all runs
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
        """Untrained heads for a random model."""
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
        """An engine on a random model; plain without a drafter or heads.

        Whether rows are exact is the affair of the part `rows`: figures count in any case, so the
        worker, which would refuse and takes a second to find out, is not to look.
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
        """Give back what nobody holds any more."""
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
    """How many outputs differ."""
    return sum(tuple(a) != tuple(b) for a, b in zip(some, others, strict=True))
