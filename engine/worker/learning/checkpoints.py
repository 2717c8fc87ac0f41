"""Checkpoints of heads that are trained online.

    DIR/v000001/heads.safetensors
    DIR/v000001/heads.json

A version has the format that `heads train` writes, so that `--heads` accepts it too. It is written
by a thread beside the steps, and appears whole or not at all. The newest version is used; one that
is damaged, or was learned from other heads than those shipped now, is passed over.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from engine.checkpoint.cache import building
from engine.errors import HeadsMismatch
from engine.model.decoder import Decoder
from engine.model.exit_head import HeadWeights, RefinementWeights, read_facts, read_tensors

logger = logging.getLogger(__name__)

_NAME = re.compile(r"v(\d{6,})")
_KEPT = 2  # versions kept on disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The weights that serve at every exit."""

    versions: Mapping[int, int]  # by exit layer; 0: the shipped weights
    weights: Mapping[int, HeadWeights]  # by exit layer


class Checkpoints:
    """The checkpoints of one model's heads, with the shipped heads that training began with."""

    def __init__(self, directory: Path, shipped: Path, decoder: Decoder) -> None:
        """
        Args:
            directory: Where versions are kept.
            shipped: Directory of the shipped heads.
            decoder: The model that the heads belong to.
        """
        self._directory = directory
        self._decoder = decoder
        self._facts = read_facts(shipped, decoder)
        self._tensors = read_tensors(shipped)
        self._shipped = _digest(shipped / "heads.safetensors")
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoints")
        self._writing: Future[None] | None = None
        self._waiting: Learned | None = None

    @property
    def shipped(self) -> dict[int, HeadWeights]:
        """The shipped heads' trainable weights, by exit layer."""
        layers = self._facts["exit_layers"]
        return {layer: HeadWeights.of(self._tensors, layer) for layer in layers}

    @property
    def refinements(self) -> dict[int, RefinementWeights]:
        """The refinements of the heads that have one, by exit layer; they are not trained."""
        found = {n: RefinementWeights.of(self._tensors, n) for n in self._facts["exit_layers"]}
        return {layer: weights for layer, weights in found.items() if weights is not None}

    def newest(self) -> Learned | None:
        """Return the newest usable version, or None."""
        for path in reversed(self._paths()):
            try:
                learned = self._read(path)
            except (HeadsMismatch, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
                logger.warning("learned exit heads in %s are passed over: %s", path, error)
                continue
            logger.info("exit heads go on from %s", path)
            return learned
        return None

    def save(self, learned: Learned) -> None:
        """Write a version soon; while another is being written, only the newest one waits."""
        self._waiting = learned
        self.flush()

    def flush(self) -> None:
        """Begin to write the waiting version, if no other is being written."""
        if self._waiting is None or not (self._writing is None or self._writing.done()):
            return
        learned, self._waiting = self._waiting, None
        self._writing = self._thread.submit(self._write, learned)

    def close(self) -> None:
        """Wait until everything is written."""
        if self._writing is not None:
            self._writing.result()
        self.flush()
        self._thread.shutdown()

    def _paths(self) -> list[Path]:
        """Return the versions' directories, oldest first."""
        if not self._directory.is_dir():
            return []
        paths = [path for path in self._directory.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(paths, key=_number)

    def _read(self, path: Path) -> Learned:
        facts = read_facts(path, self._decoder)
        learned = facts["learned"]
        if learned["shipped"] != self._shipped:
            raise HeadsMismatch("they were learned from other heads than those of this model now")
        if learned["digest"] != _digest(path / "heads.safetensors"):
            raise HeadsMismatch("heads.safetensors is damaged")
        tensors = read_tensors(path)
        weights = {layer: HeadWeights.of(tensors, layer) for layer in self._facts["exit_layers"]}
        versions = {layer: int(learned["versions"][str(layer)]) for layer in weights}
        return Learned(versions=versions, weights=weights)

    def _write(self, learned: Learned) -> None:
        """Write a version, or warn: without it the next worker starts from older weights."""
        try:
            self._write_version(learned)
        except OSError as error:
            logger.warning("learned exit heads cannot be kept in %s: %s", self._directory, error)

    def _write_version(self, learned: Learned) -> None:
        paths = self._paths()
        if not any(learned.versions.values()):
            for path in paths:
                shutil.rmtree(path, ignore_errors=True)
            return
        number = _number(paths[-1]) + 1 if paths else 1
        with building(self._directory / f"v{number:06d}") as scratch:
            save_file(self._tensors_with(learned.weights), str(scratch / "heads.safetensors"))
            facts = self._facts | {"learned": self._notes(learned, scratch)}
            (scratch / "heads.json").write_text(json.dumps(facts, indent=1))
        for path in paths[: 1 - _KEPT]:
            shutil.rmtree(path, ignore_errors=True)

    def _tensors_with(self, weights: Mapping[int, HeadWeights]) -> dict[str, Tensor]:
        tensors = dict(self._tensors)
        for layer, mine in weights.items():
            tensors |= {name: each.cpu().clone() for name, each in mine.named(layer).items()}
        return tensors

    def _notes(self, learned: Learned, scratch: Path) -> dict[str, Any]:
        return {
            "versions": {str(layer): version for layer, version in learned.versions.items()},
            "shipped": self._shipped,
            "digest": _digest(scratch / "heads.safetensors"),
        }


def _number(path: Path) -> int:
    return int(path.name[1:])


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
