"""A tiny random Llama on disk, untrained heads for it, and sequences run through single steps."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.exit_head import Calibration, ExitHeads, build_heads, format_version
from engine.model.ops.interface import LayerCache, Ops
from engine.model.spec import ModelSpec
from engine.model.weights import WeightReader
from engine.plan import RowPlan, RowResult, SequenceStart
from engine.request import EarlyExitOptions, SamplingParams
from engine.worker.chances import Chances
from engine.worker.cost_curve import CostCurve
from engine.worker.cost_model import CostModel
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.exit_policy import ExitPolicy
from engine.worker.kv_cache import allocate_cache
from engine.worker.learning.recorder import Recorder
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.sampler import Sampler
from engine.worker.segment_runner import SegmentRunner
from engine.worker.sequence_state import SequenceState
from engine.worker.structure import StructureState

_NEVER = 1 << 30  # number of tokens that no test reaches
_OF_START = {"stop_token_ids", "num_prompt_logprobs"}  # fields of `SequenceStart` too
_OF_SAMPLING = {field.name for field in fields(SamplingParams)} - _OF_START

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, LAYERS, VOCAB, FEED_FORWARD = 48, 4, 2, 16, 6, 97, 80


def write_tiny_llama(directory: Path, seed: int = 0) -> Path:
    """Write config.json and model.safetensors of a random model whose greedy output is varied."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_SIZE,
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * scale

    tensors = {"model.embed_tokens.weight": random(VOCAB, HIDDEN, scale=1.0)}
    tensors["model.norm.weight"] = 1 + random(HIDDEN, scale=0.1)
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD_SIZE, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_SIZE, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_SIZE),
            "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
            "mlp.up_proj": (FEED_FORWARD, HIDDEN),
            "mlp.down_proj": (HIDDEN, FEED_FORWARD),
        }
        for name, shape in shapes.items():
            tensors[f"{prefix}{name}.weight"] = random(*shape, scale=1.5 * shape[1] ** -0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{name}.weight"] = 1 + random(HIDDEN, scale=0.1)
    save_file(tensors, str(directory / "model.safetensors"))
    return directory


def random_heads(
    decoder: Decoder, exit_layers: Sequence[int], vocabulary_size: int, refinement_size: int = 0
) -> ExitHeads:
    """Make untrained heads with a random reduced vocabulary; they are mostly wrong."""
    tensors = random_head_tensors(exit_layers, vocabulary_size, refinement_size)
    edges, rates = (0.5, 1.0), (0.5, 0.9)
    calibration = {n: Calibration(edges=edges, greedy=rates, sampled=rates) for n in exit_layers}
    return build_heads(decoder, tensors["vocabulary"], tensors, exit_layers, calibration)


def write_tiny_heads(
    model: Path, directory: Path, exit_layers: Sequence[int], refinement_size: int = 0
) -> Path:
    """Write untrained heads for the tiny model in `model`; return their directory."""
    directory.mkdir()
    tensors = random_head_tensors(exit_layers, 40, refinement_size)
    save_file(tensors, str(directory / "heads.safetensors"))
    calibration = {"edges": [0.5, 1.0], "greedy": [0.5, 0.9], "sampled": [0.5, 0.9]}
    facts = {
        "format_version": format_version(tensors),
        "fingerprint": WeightReader(model, ModelSpec.from_directory(model)).fingerprint(),
        "hidden_size": HIDDEN,
        "exit_layers": list(exit_layers),
        "calibration": {str(layer): calibration for layer in exit_layers},
    }
    (directory / "heads.json").write_text(json.dumps(facts))
    return directory


def random_head_tensors(
    exit_layers: Sequence[int], vocabulary_size: int, refinement_size: int = 0
) -> dict[str, Tensor]:
    """Return the tensors of `heads.safetensors` for untrained heads."""
    generator = torch.Generator().manual_seed(7)
    ids = torch.randperm(VOCAB, generator=generator)[:vocabulary_size]
    tensors = {"vocabulary": ids.sort().values.int()}
    for layer in exit_layers:
        prefix = f"exits.{layer}."
        tensors[f"{prefix}norm"] = torch.ones(HIDDEN)
        tensors[f"{prefix}previous_norm"] = torch.ones(HIDDEN)
        tensors[f"{prefix}other"] = torch.randn(HIDDEN, generator=generator) * 0.1
        for name in ("project", "project_previous"):
            tensors[f"{prefix}{name}"] = _weight(HIDDEN, HIDDEN, generator)
        if refinement_size:
            tensors |= {
                f"{prefix}refinement.norm": torch.rand(HIDDEN, generator=generator) + 0.5,
                f"{prefix}refinement.gate": _weight(refinement_size, HIDDEN, generator),
                f"{prefix}refinement.up": _weight(refinement_size, HIDDEN, generator),
                f"{prefix}refinement.down": _weight(HIDDEN, refinement_size, generator),
            }
    return tensors


def _weight(height: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(height, width, generator=generator) * width**-0.5


def policy_drafter(decoder: Decoder, heads: ExitHeads | None, **options: Any) -> PolicyDrafter:
    """Make a policy drafter on heads (or on prompt look-up alone), with made-up costs."""
    layers = [] if heads is None else heads.exit_layers
    cheap, dear = CostCurve([1], [0.1]), CostCurve([1], [1.0])
    cost = CostModel([cheap] * len(layers) + [dear], [cheap] * len(layers), dear)
    return PolicyDrafter(
        ExitPolicy(len(layers), cost),
        Chances(layers, {} if heads is None else heads.calibration),
        exit_layers=layers,
        exit_evaluator=None if heads is None else ExitEvaluator(heads, Sampler(decoder.ops)),
        **options,
    )


def sequence_start(sequence_id: int, token_ids: Sequence[int], **options: object) -> SequenceStart:
    """Make the start of a sequence, sampled greedily unless `options` say otherwise.

    Args:
        sequence_id: Its id.
        token_ids: Its prompt.
        options: Fields of `SamplingParams` and `SequenceStart`, and the early-exit options
            `early_exit`, `threshold` and `lookup`.
    """
    exits = EarlyExitOptions(
        enabled=bool(options.pop("early_exit", True)),
        threshold=options.pop("threshold", None),
        lookup=bool(options.pop("lookup", True)),
    )
    sampling = {"temperature": 0.0, "seed": 1234 + sequence_id}
    sampling |= {name: options.pop(name) for name in _OF_SAMPLING if name in options}
    given: dict[str, object] = {"stop_token_ids": [], "last_len": _NEVER}
    return SequenceStart(
        sequence_id=sequence_id,
        token_ids=list(token_ids),
        num_prompt_tokens=len(token_ids),
        sampling=SamplingParams(**sampling),
        early_exit=exits,
        **(given | options),  # type: ignore[arg-type]
    )


class StepDriver:
    """Runs sequences through `DecodeStep` with hand-made block tables."""

    def __init__(
        self,
        decoder: Decoder,
        block_size: int,
        drafter: object | None = None,
        open_structure: Callable[[SequenceStart], StructureState] | None = None,
        make_runner: Callable[[Sequence[LayerCache]], SegmentRunner] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._open_structure = open_structure
        self._block_size = block_size
        self._num_blocks = 1024
        cache = allocate_cache(
            decoder.spec,
            self._num_blocks,
            block_size,
            dtype=decoder.ops.dtype,
            device=decoder.ops.device,
        )
        runner = make_runner(cache) if make_runner is not None else None
        self._step = DecodeStep(
            decoder,
            cache,
            block_size,
            drafter=drafter,  # type: ignore[arg-type]
            runner=runner,
            recorder=recorder,
            spare_slots=range(1, block_size),  # slots of the first block, which no row has
        )

    @torch.inference_mode()
    def generate(
        self,
        starts: Sequence[SequenceStart],
        num_tokens: int,
        *,
        chunk: int = 64,
        max_draft_tokens: int = 5,
    ) -> tuple[dict[int, list[int]], list[RowResult]]:
        """Run all sequences at once until each has `num_tokens` of output.

        Returns:
            All tokens of each sequence, by its id, and all row results.
        """
        opens = self._open_structure or (lambda start: None)
        states = {start.sequence_id: SequenceState(start, opens(start)) for start in starts}
        computed = dict.fromkeys(states, 0)
        results: list[RowResult] = []
        goal = {s.sequence_id: s.num_prompt_tokens + num_tokens for s in starts}
        while open_ids := [i for i in states if len(states[i].token_ids) < goal[i]]:
            plans = [
                self._plan(states[i], computed[i], goal[i], chunk, max_draft_tokens)
                for i in open_ids
            ]
            for plan, result in zip(
                plans, self._step.run(plans, [states[i] for i in open_ids]), strict=True
            ):
                assert result.error is None
                computed[plan.sequence_id] += plan.num_tokens
                if plan.is_decoding:
                    computed[plan.sequence_id] = len(states[plan.sequence_id].token_ids) - 1
                results.append(result)
        return {i: state.token_ids for i, state in states.items()}, results

    def _plan(
        self, state: SequenceState, computed: int, goal: int, chunk: int, max_draft_tokens: int
    ) -> RowPlan:
        known = len(state.token_ids)
        num_tokens = min(chunk, known - computed)
        per_row = self._num_blocks // 16
        # A sequence's blocks are scattered over the pool, in descending order.
        table = [self._num_blocks - 1 - 16 * k - state.sequence_id for k in range(per_row)]
        return RowPlan(
            sequence_id=state.sequence_id,
            start=computed,
            num_tokens=num_tokens,
            block_table=table,
            max_draft_tokens=min(max_draft_tokens, goal - known - 1),
            is_decoding=computed + num_tokens == known,
        )


def load_tiny(directory: Path, ops: Ops) -> Decoder:
    """Load the tiny model on a backend."""
    return Decoder.load(directory, ops)
