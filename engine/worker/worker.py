"""The data plane: loads the model and its heads, owns the KV tensors, and executes plans.

Holds nothing that plans could not rebuild. Knows no HTTP, no text and no scheduling; its interface
is `engine.plan`.
"""

import logging
import time
from collections.abc import Sequence

import torch

from engine.checkpoint.cache import Progress, cache_root
from engine.config import EngineConfig
from engine.errors import HeadsMismatch, ModelLoadError
from engine.model.decoder import Decoder, Segment
from engine.model.exact_rows import CHECKED_COUNTS, uneven_counts
from engine.model.exit_head import ExitHeads, load_heads
from engine.model.ops.interface import LayerCache, Ops
from engine.model.spec import ModelSpec
from engine.plan import Learning, RowResult, StepPlan, StepResult, WorkerInfo
from engine.policy_reason import PolicyReason, PolicyReport
from engine.request import Structure
from engine.worker.backend import (
    describe_numbers,
    keeps_blocks,
    limit_torch_threads,
    select_ops,
)
from engine.worker.capture import Capture, token_counts_for
from engine.worker.cuda_graph import CudaCapture
from engine.worker.decode_step import Clock, DecodeStep, split_layers
from engine.worker.drafter import Drafter
from engine.worker.drafting import Drafting, DraftingMaker
from engine.worker.grammars import Grammars
from engine.worker.graph_runner import BatchLimits, GraphRunner
from engine.worker.kv_budget import count_blocks
from engine.worker.kv_cache import KvCache, allocate_cache
from engine.worker.learning.online_training import OnlineTraining
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
        """Load the model and all that serves it.

        Args:
            progress: Called with (what is being done, fraction done).
            drafter: Drafts instead of what the configuration names (tests, benchmarks).
            decoder: The model, if it is loaded already (benchmarks); of the directory's shape.
            observer: Is shown every pass; only possible without exits (training).
            verifies: False: every draft is accepted, and the output changes (benchmarks).
            clock: In seconds, to time what drafts cost (benchmarks may count CPU time). A
                `ModelledClock` brings its own costs: then none are measured or corrected.
            capture: Captures graphs; for simulating a GPU where there is none (benchmarks).

        Raises:
            ModelLoadError: The model or its heads cannot be loaded, or memory is missing.
        """
        self._config = config
        self._clock = clock
        self._capture = capture
        self._modelled = clock if isinstance(clock, ModelledClock) else None
        self._progress = progress or (lambda text, fraction: None)
        spec = ModelSpec.from_directory(config.model.directory)
        self._max_model_len = _max_model_len(config.model.max_model_len, spec)
        ops = select_ops(config, spec) if decoder is None else decoder.ops
        limit_torch_threads(config, ops)
        self.decoder = decoder or self._load_decoder(ops)
        self._check_exact_rows()
        is_drafting = drafter is None and config.exits.enabled
        heads = self._load_heads() if is_drafting else None
        self._online_training = self._open_online_training(heads)
        exits = heads if drafter is None else drafter
        self._exit_layers = [] if exits is None else exits.exit_layers
        self._num_blocks = count_blocks(config, self.decoder, self._max_model_len)
        # One block more than sequences are given, for the slot that graphs write padding to and the
        # spare slots of alternates.
        cache = allocate_cache(
            spec,
            self._num_blocks + 1,
            config.cache.block_size,
            dtype=ops.dtype,
            device=ops.device,
        )
        runner = self._make_runner(cache, observer)
        self._runs_ahead = isinstance(runner, GraphRunner)
        self.drafting: Drafting | None = None  # heads and look-up, as configured
        if is_drafting:
            self.drafting = self._make_drafting(heads, cache, runner)
            drafter = None if self.drafting is None else self.drafting.drafter
        self._has_drafter = drafter is not None
        step = DecodeStep(
            self.decoder,
            cache,
            config.cache.block_size,
            drafter=drafter,
            runner=runner if self._modelled is None else self._modelled.watch_runner(runner),
            recorder=None if self._online_training is None else self._online_training.recorder,
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
            dtype=str(ops.dtype).removeprefix("torch."),
            numbers=self._numbers,
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
        """Return what was learned in this step and since the one before."""
        if self._online_training is None:
            return None
        learning = self._online_training.note_step(duration_s)
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
        """Let the heads learn for a few milliseconds between steps, if it is their turn.

        Args:
            is_idle: Whether no step seems to be waiting.

        Returns:
            Whether anything was done.
        """
        return self._online_training is not None and self._online_training.learn(is_idle=is_idle)

    def close(self) -> None:
        """Save what heads have learned; no step follows."""
        if self._online_training is not None:
            self._online_training.close()

    def prepare(self, structure: Structure) -> None:
        """Compile a structure before a sequence needs it; may run in a thread while steps run."""
        self._grammars.prepare(structure)

    def _load_decoder(self, ops: Ops) -> Decoder:
        return Decoder.load(
            self._config.model.directory,
            ops,
            max_positions=self._max_model_len,
            keep_blocks=keeps_blocks(self._config.model, ops),
            progress=self._progress,
        )

    def _load_heads(self) -> ExitHeads | None:
        directory = self._config.exits.heads
        if directory is None:
            logger.info("no exit heads for this model (see `adadecode heads train`)")
            return None
        if not directory.is_dir():
            raise HeadsMismatch(f"exit heads: {directory} is not a directory")
        return load_heads(directory, self.decoder)

    def _open_online_training(self, heads: ExitHeads | None) -> OnlineTraining | None:
        """Return what makes the heads learn; None: they do not."""
        exits = self._config.exits
        if not exits.learn:
            return None
        if heads is None or exits.heads is None:
            raise ModelLoadError("--learn-heads: no exit heads serve here that could learn")
        where = exits.learn_directory or cache_root() / "heads"
        # No modelled cost covers learning: on a modelled clock it counts by its CPU time.
        clock = self._clock if self._modelled is None else time.thread_time
        return OnlineTraining(heads, self.decoder, exits.heads, where, exits.learn_share, clock)

    def _check_exact_rows(self) -> None:
        """Check, on a GPU where it is promised, that a token's bits do not depend on the batch."""
        if self.decoder.ops.device.type != "cuda" or not self._config.model.exact:
            return
        uneven = uneven_counts(self.decoder)
        if uneven:
            raise ModelLoadError(
                f"--exact: on this GPU a token's bits change when {uneven} tokens share a call, so "
                "early exits could change the output; --no-exact serves all the same"
            )
        logger.info("exact rows: a token's bits are the same alone and among %s", CHECKED_COUNTS)

    def _make_runner(
        self, cache: Sequence[LayerCache], observer: PassObserver | None
    ) -> SegmentRunner:
        """Return what runs passes between the exits, or between the layers that are observed."""
        assert observer is None or not self._exit_layers, "passes are observed without exits"
        layers = self._exit_layers if observer is None else observer.layers
        segments = split_layers(self.decoder.spec.num_layers, layers)
        capture = self._capture
        if capture is None and self.decoder.ops.name == "cuda":
            capture = None if self._config.model.enforce_eager else CudaCapture()
        runner: SegmentRunner = EagerRunner(self.decoder, segments, cache)
        if capture is not None:
            runner = self._capture_graphs(segments, cache, capture)
        return runner if observer is None else ObservedRunner(runner, segments, observer)

    def _capture_graphs(
        self, segments: Sequence[Segment], cache: Sequence[LayerCache], capture: Capture
    ) -> GraphRunner:
        """Return a runner of CUDA graphs, captured for all batches that steps may have."""
        config = self._config
        self._progress("capturing graphs", 0.0)
        max_rows, drafts = config.scheduler.max_num_seqs, config.exits.max_draft_tokens
        limits = BatchLimits(
            max_rows=max_rows,
            max_positions=self._max_model_len + drafts,
            block_size=config.cache.block_size,
            spare_slot=self._spare_slot,
            token_counts=token_counts_for(max_rows * (1 + drafts)),
        )
        runner = GraphRunner(self.decoder, segments, cache, limits, capture)
        runner.prepare()
        return runner

    def _make_drafting(
        self, heads: ExitHeads | None, cache: KvCache, runner: SegmentRunner
    ) -> Drafting | None:
        """Return who drafts and by what, as configured; None: nobody."""
        return DraftingMaker(
            config=self._config,
            decoder=self.decoder,
            runner=runner,
            cache=cache,
            clock=self._clock,
            numbers=self._numbers,
            is_queued=self._is_queued,
            progress=self._progress,
        ).make(heads)

    @property
    def _numbers(self) -> str:
        """What is computed in."""
        return describe_numbers(self._config.model, self.decoder.ops)

    @property
    def _is_queued(self) -> bool:
        """Whether calls return before the device has computed; so on a simulated GPU."""
        return self.decoder.ops.device.type == "cuda" or self._capture is not None

    @property
    def _spare_slot(self) -> int:
        """The first slot of the block that no sequence is given."""
        return self._num_blocks * self._config.cache.block_size

    @property
    def _slots_aside(self) -> range:
        """The further slots of that block, for alternates."""
        return range(self._spare_slot + 1, self._spare_slot + self._config.cache.block_size)


def _max_model_len(asked: int | None, spec: ModelSpec) -> int:
    """Return the context length asked for, or the model's own.

    Raises:
        ModelLoadError: if the model was not made for that length.
    """
    if asked is not None and asked > spec.longest_context:
        raise ModelLoadError(
            f"--max-model-len {asked}: the model's context is {spec.longest_context} tokens"
        )
    return asked or spec.max_position_embeddings
