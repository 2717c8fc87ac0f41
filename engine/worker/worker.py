"""The data plane: loads the model and its heads, owns the KV tensors, executes plans. Anything on
the device starts here.

Holds nothing that a plan could not rebuild. Knows no HTTP, no text, no scheduling; speaks
`engine.plan` only.
"""

import logging
import time
from collections.abc import Callable, Sequence

import torch

from engine.checkpoint.cache import cache_root
from engine.checkpoint.directory import has_blocks
from engine.config import EngineConfig
from engine.errors import HeadsMismatch, ModelLoadError
from engine.model.decoder import Decoder, Segment
from engine.model.exact_rows import TOKEN_COUNTS, uneven_counts
from engine.model.exit_head import ExitHeads, load_heads
from engine.model.ops.interface import LayerCache
from engine.model.spec import ModelSpec
from engine.plan import Learning, RowResult, StepPlan, StepResult, WorkerInfo
from engine.policy_reason import PolicyReason, PolicyReport
from engine.request import Structure
from engine.worker import memory
from engine.worker.backend import describe_numbers, limit_torch_threads, select_ops
from engine.worker.capture import Capture, token_counts_for
from engine.worker.cuda_graph import CudaCapture
from engine.worker.decode_step import Clock, DecodeStep, split_layers
from engine.worker.drafter import Drafter
from engine.worker.drafting import Drafting, DraftingMaker
from engine.worker.grammars import Grammars
from engine.worker.graph_runner import BatchLimits, GraphRunner
from engine.worker.kv_cache import allocate_cache, block_size_bytes
from engine.worker.learning.school import School
from engine.worker.modelled_clock import ModelledClock
from engine.worker.segment_runner import (
    EagerRunner,
    ObservedRunner,
    PassObserver,
    SegmentRunner,
)
from engine.worker.sequence_state import SequenceState
from engine.worker.step_guard import StepGuard

logger = logging.getLogger(__name__)

Progress = Callable[[str, float], None]


class ModelWorker:
    """One model on one device, executing one step at a time."""

    def __init__(
        self,
        config: EngineConfig,
        progress: Progress | None = None,
        drafter: Drafter | None = None,
        decoder: Decoder | None = None,
        *,
        observer: PassObserver | None = None,
        verifies: bool = True,
        clock: Clock = time.perf_counter,
        capture: Capture | None = None,
    ) -> None:
        """Load everything.

        Args:
            progress: Called with (what is being done, fraction done).
            drafter: Drafts instead of the exit heads the configuration names (tests, benchmarks).
            decoder: The model, if it is loaded already (benchmarks); of the directory's shape.
            observer: Sees every pass; without drafts only (training).
            verifies: False: drafts are taken as they are, and change the output (benchmarks).
            clock: In seconds, for what drafts cost (benchmarks may count CPU time). A
                `ModelledClock` brings its costs along: nothing is measured then, nor corrected.
            capture: How graphs are captured where there is no GPU, and one is played (benchmarks).

        Raises:
            ModelLoadError: if the model, its heads or the memory for them cannot be had.
        """
        self._config = config
        self._clock = clock
        self._capture = capture
        self._modelled = clock if isinstance(clock, ModelledClock) else None
        spec = ModelSpec.from_directory(config.model.directory)
        self._max_model_len = config.model.max_model_len or spec.max_position_embeddings
        ops = select_ops(config, spec) if decoder is None else decoder.ops
        limit_torch_threads(config, ops)
        model = config.model
        self._keeps_blocks = (
            ops.name == "native" and model.quantization != "none" and has_blocks(model.directory)
        )
        self.decoder = decoder or Decoder.load(
            config.model.directory,
            ops,
            max_positions=self._max_model_len,
            keep_blocks=self._keeps_blocks,
            progress=progress,
        )
        self._check_exact_rows()
        heads = None
        if drafter is None and config.exits.enabled:
            heads = self._load_heads()
        self._school = self._open_school(heads)
        exit_layers = heads.exit_layers if heads is not None else []
        self._exit_layers = exit_layers if drafter is None else drafter.exit_layers
        block_size = config.cache.block_size
        self._num_blocks = self._count_blocks()
        # One block more than any sequence is given: the slot that graphs write padding to, and
        # those of tokens that stand aside.
        cache = allocate_cache(
            spec, self._num_blocks + 1, block_size, dtype=ops.dtype, device=ops.device
        )
        assert observer is None or not self._exit_layers, "passes are observed without exits"
        layers = self._exit_layers if observer is None else observer.layers
        segments = split_layers(spec.num_layers, layers)
        runner = self._make_runner(segments, cache, progress)
        self._runs_ahead = isinstance(runner, GraphRunner) and observer is None
        if observer is not None:
            runner = ObservedRunner(runner, segments, observer)
        self.drafting: Drafting | None = None  # by heads or look-ups, as the configuration says
        if drafter is None and config.exits.enabled:
            maker = DraftingMaker(
                config=config,
                decoder=self.decoder,
                runner=runner,
                cache=cache,
                clock=clock,
                numbers=describe_numbers(ops, has_blocks=self._keeps_blocks),
                is_queued=self._is_queued,
                progress=progress,
            )
            self.drafting = maker.make(heads)
            drafter = None if self.drafting is None else self.drafting.drafter
        self._has_drafter = drafter is not None
        if self._modelled is not None:
            runner = self._modelled.watch_runner(runner)
        step = DecodeStep(
            self.decoder,
            cache,
            block_size,
            drafter=drafter,
            runner=runner,
            recorder=None if self._school is None else self._school.recorder,
            spare_slots=self._slots_aside if config.exits.alternates else (),
            verifies=verifies,
            clock=clock,
        )
        self._step = StepGuard(step)
        self._states: dict[int, SequenceState] = {}
        self._grammars = Grammars(config.model.directory, spec.vocab_size, spec.eos_token_ids)

    @property
    def info(self) -> WorkerInfo:
        """What the control plane needs to know."""
        spec, ops = self.decoder.spec, self.decoder.ops
        return WorkerInfo(
            num_blocks=self._num_blocks,
            block_size=self._config.cache.block_size,
            vocab_size=spec.vocab_size,
            num_layers=spec.num_layers,
            hidden_size=spec.hidden_size,
            max_model_len=self._max_model_len,
            eos_token_ids=list(spec.eos_token_ids),
            dtype=describe_numbers(ops, has_blocks=self._keeps_blocks),
            device=str(ops.device),
            exit_layers=self._exit_layers,
            has_lookup=self._has_drafter and self._config.exits.lookup,
            max_draft_tokens=self._config.exits.max_draft_tokens if self._has_drafter else 0,
            backend=ops.name,
            runs_ahead=self._runs_ahead,
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        started = self._clock()
        for sequence_id in plan.ended:
            self._states.pop(sequence_id, None)
        for start in plan.started:
            structure = self._grammars.open(start) if start.sampling.structure is not None else None
            self._states[start.sequence_id] = SequenceState(start, structure)
        results: list[RowResult] = []
        if plan.rows:
            states = [self._states[row.sequence_id] for row in plan.rows]
            results = self._step.run(plan.rows, states)
        duration_s = self._clock() - started
        return StepResult(
            step_id=plan.step_id,
            rows=results,
            duration_s=duration_s,
            policy=self._policy_report(),
            learning=self._note_step(duration_s),
        )

    def _note_step(self, duration_s: float) -> Learning | None:
        """What was learned in this step and since the one before."""
        if self._school is None:
            return None
        learning = self._school.note_step(duration_s)
        if self._modelled is not None:
            self._modelled.advance(learning.seconds)
        return learning

    def _policy_report(self) -> PolicyReport:
        if self.drafting is None:
            return PolicyReport()
        if self._config.exits.threshold is not None:
            return PolicyReport(reason=PolicyReason.FIXED_THRESHOLD)
        return self.drafting.policy.report

    def rest(self, *, is_idle: bool) -> bool:
        """Between steps: let the heads learn for a few milliseconds, if it is their turn.

        Args:
            is_idle: No step waits, as far as can be seen.

        Returns:
            Whether anything was done.
        """
        return self._school is not None and self._school.learn(is_idle=is_idle)

    def close(self) -> None:
        """No step comes any more: keep what is to be kept."""
        if self._school is not None:
            self._school.close()

    def prepare(self, structure: Structure) -> None:
        """Compile a structure ahead of the sequence that brings it; safe beside steps."""
        self._grammars.prepare(structure)

    def _load_heads(self) -> ExitHeads | None:
        directory = self._config.exits.heads
        if directory is None:
            logger.info("no exit heads for this model (see `adadecode heads train`)")
            return None
        if not directory.is_dir():
            raise HeadsMismatch(f"exit heads: {directory} is not a directory")
        return load_heads(directory, self.decoder)

    def _open_school(self, heads: ExitHeads | None) -> School | None:
        """For heads that learn; None: they do not."""
        exits = self._config.exits
        if not exits.learn:
            return None
        if heads is None or exits.heads is None:
            raise ModelLoadError("--learn-heads: no exit heads serve here that could learn")
        where = exits.learn_directory or cache_root() / "heads"
        # What learning takes is in no costs: on a modelled clock it counts as it is, by CPU time.
        clock = self._clock if self._modelled is None else time.thread_time
        return School(heads, self.decoder, exits.heads, where, exits.learn_share, clock)

    def _check_exact_rows(self) -> None:
        """Find out on a GPU whether rows keep their bits, where that is promised."""
        if self.decoder.ops.device.type != "cuda" or not self._config.model.exact:
            return
        uneven = uneven_counts(self.decoder)
        if uneven:
            raise ModelLoadError(
                f"--exact: on this GPU a token's bits change when {uneven} tokens share a call, so "
                "early exits could change the output; --no-exact serves all the same"
            )
        logger.info("exact rows: a token's bits are the same alone and among %s", TOKEN_COUNTS)

    def _make_runner(
        self,
        segments: Sequence[Segment],
        cache: Sequence[LayerCache],
        progress: Progress | None,
    ) -> SegmentRunner:
        """Graphs on a GPU, unless they are not wanted."""
        decoder, config, capture = self.decoder, self._config, self._capture
        if capture is None and decoder.ops.name == "cuda" and not config.model.enforce_eager:
            capture = CudaCapture()
        if capture is None:
            return EagerRunner(decoder, segments, cache)
        if progress is not None:
            progress("capturing graphs", 0.0)
        max_rows, drafts = config.scheduler.max_num_seqs, config.exits.max_draft_tokens
        limits = BatchLimits(
            max_rows=max_rows,
            max_positions=self._max_model_len + drafts,
            block_size=config.cache.block_size,
            spare_slot=self._spare_slot,
            token_counts=token_counts_for(max_rows * (1 + drafts)),
        )
        runner = GraphRunner(decoder, segments, cache, limits, capture)
        runner.prepare()
        return runner

    @property
    def _is_queued(self) -> bool:
        """Whether calls return before the device has computed, or would on the one that is
        played.
        """
        return self.decoder.ops.device.type == "cuda" or self._capture is not None

    @property
    def _spare_slot(self) -> int:
        """The first slot of the block that no sequence is given."""
        return self._num_blocks * self._config.cache.block_size

    @property
    def _slots_aside(self) -> range:
        """The others of that block."""
        return range(self._spare_slot + 1, self._spare_slot + self._config.cache.block_size)

    def _count_blocks(self) -> int:
        """Blocks the memory budget buys, at most what all sequences at full length could use."""
        config, spec, ops = self._config, self.decoder.spec, self.decoder.ops
        block_size = config.cache.block_size
        per_block = block_size_bytes(spec, block_size, ops.dtype)
        as_before = config.cache.num_blocks
        if as_before is not None and as_before * per_block <= memory.free_bytes(ops.device):
            return as_before
        budget = config.cache.kv_cache_memory_bytes
        if budget is None:
            budget = self._memory_budget()
        most = config.scheduler.max_num_seqs * -(-self._max_model_len // block_size)
        if as_before is not None:  # something else has taken the memory that the first worker had
            budget, most = min(budget, self._memory_budget()), as_before
        num_blocks = min(budget // per_block, most)
        if num_blocks < 1:
            raise ModelLoadError(
                f"--kv-cache-memory: {budget} bytes do not hold one block of {per_block} bytes"
            )
        return num_blocks

    def _memory_budget(self) -> int:
        """Bytes for the KV cache."""
        cache, decoder = self._config.cache, self.decoder
        utilization = cache.gpu_memory_utilization
        if decoder.ops.device.type != "cuda":
            if utilization is not None:
                raise ModelLoadError("--gpu-memory-utilization: the model is not on a GPU")
            return memory.cpu_budget()
        scheduler, drafts = self._config.scheduler, self._config.exits.max_draft_tokens
        memory.run_largest(
            decoder, scheduler.max_num_batched_tokens, scheduler.max_num_seqs * (1 + drafts)
        )
        free, total = torch.cuda.mem_get_info(decoder.ops.device)
        return memory.gpu_budget(utilization or memory.DEFAULT_GPU_UTILIZATION, free, total)
