"""Exit heads: the hidden state at an exit layer -> an estimate of the last hidden state -> logits.

A head reads two things: the token's hidden state h at the exit layer, and the last layer's hidden
state of the token before it (known for the first draft; for later drafts the head's own estimate).
At layer 0 h is the token's embedding:

    linear = T · (a * rms(h)) + U · (b * rms(previous))          T, U [E, E] trained, a, b [E] fixed
    state  = linear + D · (silu(G · x) * (V · x))                G, V [F, E] and D [E, F] trained
             where x = c * rms(linear)                           c [E] fixed
    logits = E* · final_norm(state)                              E* frozen rows of the LM head
    other  = o · rms(state)                                      o [E] trained

The second line is a **refinement**, a gated MLP as the model's own layers have; a head without one
has state = linear. E* holds the rows of a **reduced vocabulary**; "other" is the logit of all
tokens outside it: a head that expects such a token says so instead of guessing. Knows nothing of
sequences or policies.

Source: AdaDecode (Wei et al. 2025, arXiv 2506.03700) for E*·T; FR-Spec (arXiv 2502.14856) for the
reduced vocabulary.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.errors import HeadsMismatch
from engine.model.decoder import Decoder
from engine.model.ops.interface import Ops, PackedHead, Refinement

FORMAT_VERSION = 2
_LINEAR_FORMAT = 1  # has no refinements; heads without one are still written in it
WEIGHT_NAMES = ("project", "project_previous", "other")


class Head(Protocol):
    """What is evaluated at an exit: an `ExitHead`, or one captured in CUDA graphs."""

    @property
    def exit_layer(self) -> int:
        """The layer whose hidden states the head reads."""

    def __call__(
        self, hidden: Tensor, previous: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `ExitHead.__call__`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementWeights:
    """The weights of a head's refinement, not packed."""

    norm: Tensor  # [E], c
    gate: Tensor  # [F, E], G
    up: Tensor  # [F, E], V
    down: Tensor  # [E, F], D

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], exit_layer: int) -> "RefinementWeights | None":
        """Select an exit's refinement by its names in `heads.safetensors`; None if it has none."""
        prefix = f"exits.{exit_layer}.refinement."
        if f"{prefix}gate" not in tensors:
            return None
        return cls(**{field.name: tensors[prefix + field.name] for field in fields(cls)})


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadWeights:
    """The weights of a head that are trained further while it serves, not packed."""

    project: Tensor  # [E, E], T
    project_previous: Tensor  # [E, E], U
    other: Tensor  # [E], o

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], exit_layer: int) -> "HeadWeights":
        """Select an exit's weights by their names in `heads.safetensors`."""
        return cls(**{name: tensors[f"exits.{exit_layer}.{name}"] for name in WEIGHT_NAMES})

    def named(self, exit_layer: int) -> dict[str, Tensor]:
        """Return the weights by their names in `heads.safetensors`: the inverse of `of`."""
        return {f"exits.{exit_layer}.{name}": getattr(self, name) for name in WEIGHT_NAMES}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitHead(PackedHead):
    """The head at one exit layer, packed for a backend."""

    exit_layer: int
    ops: Ops
    eps: float

    def __call__(
        self, hidden: Tensor, previous: Tensor, lengths: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the head on runs of tokens: see `Ops.run_head`."""
        return self.ops.run_head(hidden, previous, lengths, self, self.eps)

    def adopt(self, weights: HeadWeights) -> None:
        """Replace the trained weights in place."""
        ops = self.ops
        ops.repack_head(self.project, weights.project)
        ops.repack_head(self.project_previous, weights.project_previous)
        ops.repack_head(self.other, weights.other[None])


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Shares of correct drafts by confidence, measured on held-out prompts at training time."""

    edges: Sequence[float]  # upper confidence edges of the bins, ascending, the last one 1.0
    greedy: Sequence[float]  # P(accept) per bin at temperature 0
    sampled: Sequence[float]  # P(accept) per bin at temperature 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitHeads:
    """All exit heads of a model, by ascending layer, with their shared reduced vocabulary."""

    heads: Sequence[Head]
    token_ids: Tensor  # [V'] int32, the reduced vocabulary
    columns: Tensor  # [V] int64: token id -> column, -1 outside the reduced vocabulary
    calibration: Mapping[int, Calibration]  # by exit layer
    refinement_sizes: Sequence[int]  # F of each head; 0 if it has no refinement

    @property
    def exit_layers(self) -> list[int]:
        """Exit layers, ascending."""
        return [head.exit_layer for head in self.heads]


def load_heads(directory: Path, decoder: Decoder) -> ExitHeads:
    """Load `heads.safetensors` and `heads.json`, checked against the decoder's weights.

    Raises:
        HeadsMismatch: if files are missing or damaged, or the heads were trained for other weights.
    """
    try:
        facts = read_facts(directory, decoder)
        tensors = read_tensors(directory)
        token_ids = tensors["vocabulary"].to(torch.int32)
        return build_heads(decoder, token_ids, tensors, facts["exit_layers"], _calibration(facts))
    except KeyError as error:
        raise HeadsMismatch(f"exit heads: {directory} lacks {error.args[0]!r}") from error


def format_version(tensors: Mapping[str, Tensor]) -> int:
    """Return the oldest format that can hold these heads.

    Earlier versions of this program can then read the heads they support, and refuse the others.
    """
    is_refined = any(".refinement." in name for name in tensors)
    return FORMAT_VERSION if is_refined else _LINEAR_FORMAT


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of `heads.safetensors` by name.

    Raises:
        HeadsMismatch: if the file is damaged.
    """
    path = directory / "heads.safetensors"
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise HeadsMismatch(f"exit heads: {path} cannot be read: {error}") from error


def build_heads(
    decoder: Decoder,
    token_ids: Tensor,
    tensors: Mapping[str, Tensor],
    exit_layers: Sequence[int],
    calibration: Mapping[int, Calibration],
) -> ExitHeads:
    """Build heads on the decoder's backend from tensors named as in `heads.safetensors`."""
    ops, spec = decoder.ops, decoder.spec
    token_ids = token_ids.to(ops.device)
    lm_head = ops.pack_head(decoder.lm_head_rows(token_ids))

    def vector(name: str) -> Tensor:
        return tensors[name].to(ops.device, ops.dtype).contiguous()

    refinements = {n: RefinementWeights.of(tensors, n) for n in sorted(exit_layers)}
    heads = [
        ExitHead(
            exit_layer=layer,
            norm=vector(f"exits.{layer}.norm"),
            previous_norm=vector(f"exits.{layer}.previous_norm"),
            project=ops.pack_head(vector(f"exits.{layer}.project")),
            project_previous=ops.pack_head(vector(f"exits.{layer}.project_previous")),
            other=ops.pack_head(vector(f"exits.{layer}.other")[None]),
            refinement=_packed(refinements[layer], ops),
            unit_norm=torch.ones_like(decoder.final_norm),
            final_norm=decoder.final_norm,
            lm_head=lm_head,
            ops=ops,
            eps=spec.norm_eps,
        )
        for layer in refinements
    ]
    columns = torch.full((spec.vocab_size,), -1, dtype=torch.int64, device=ops.device)
    columns[token_ids.long()] = torch.arange(len(token_ids), device=ops.device)
    return ExitHeads(
        heads=heads,
        token_ids=token_ids,
        columns=columns,
        calibration=calibration,
        refinement_sizes=[0 if each is None else len(each.gate) for each in refinements.values()],
    )


def read_facts(directory: Path, decoder: Decoder) -> dict[str, Any]:
    """Return the contents of `heads.json`, checked against the decoder's weights.

    Raises:
        HeadsMismatch: if files are missing or damaged, or the heads were trained for other weights.
    """
    for name in ("heads.json", "heads.safetensors"):
        if not (directory / name).is_file():
            raise HeadsMismatch(f"exit heads: {directory} has no {name}")
    path = directory / "heads.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HeadsMismatch(f"exit heads: {path} cannot be read: {error}") from error
    if not isinstance(facts, dict):
        raise HeadsMismatch(f"exit heads: {path} is not a JSON object")
    if facts.get("format_version") not in (_LINEAR_FORMAT, FORMAT_VERSION):
        raise HeadsMismatch(
            f"exit heads: format {facts.get('format_version')!r}, "
            f"this version reads {_LINEAR_FORMAT} and {FORMAT_VERSION}"
        )
    if facts["hidden_size"] != decoder.spec.hidden_size:
        raise HeadsMismatch(
            f"exit heads were trained for hidden size {facts['hidden_size']}, "
            f"the model has {decoder.spec.hidden_size}"
        )
    if facts["fingerprint"] != decoder.fingerprint:
        raise HeadsMismatch(
            "exit heads were trained for other weights: their fingerprint is "
            f"{facts['fingerprint'][:12]}…, the model's is {decoder.fingerprint[:12]}… "
            "(train heads for this model with `adadecode heads train`, or pass --no-early-exit)"
        )
    return facts


def _packed(weights: RefinementWeights | None, ops: Ops) -> Refinement | None:
    if weights is None:
        return None
    gate_up = torch.cat((weights.gate, weights.up)).to(ops.device, ops.dtype)
    return Refinement(
        norm=weights.norm.to(ops.device, ops.dtype).contiguous(),
        gate_up=ops.pack_head(gate_up),
        down=ops.pack_head(weights.down.to(ops.device, ops.dtype).contiguous()),
    )


def _calibration(facts: Mapping[str, Any]) -> dict[int, Calibration]:
    return {
        int(layer): Calibration(
            edges=entry["edges"], greedy=entry["greedy"], sampled=entry["sampled"]
        )
        for layer, entry in facts["calibration"].items()
    }
