"""Builds what drafts on a worker: heads, policy, and the cost of the parts of a step here.

Everything is built once, when a worker starts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from engine.checkpoint.cache import Progress, cache_root
from engine.config import EngineConfig
from engine.model.decoder import Decoder
from engine.model.exit_head import ExitHeads
from engine.worker.backend import describe_heads, describe_machine
from engine.worker.chances import Chances
from engine.worker.cost_model import CostModel
from engine.worker.cost_profile import Profiler, cost_model
from engine.worker.decode_step import Clock
from engine.worker.dummy_rows import DummyRows
from engine.worker.exit_evaluator import ExitEvaluator
from engine.worker.exit_policy import ExitPolicy
from engine.worker.graph_runner import GraphRunner
from engine.worker.kv_cache import KvCache
from engine.worker.modelled_clock import ModelledClock
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.sampler import Sampler
from engine.worker.segment_runner import SegmentRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafting:
    """A drafter with the policy and the chances that it uses."""

    drafter: PolicyDrafter
    policy: ExitPolicy
    chances: Chances


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftingMaker:
    """Builds `Drafting` from the parts of a worker."""

    config: EngineConfig
    decoder: Decoder
    runner: SegmentRunner
    cache: KvCache
    clock: Clock  # a `ModelledClock` brings its own costs: none are measured or corrected
    numbers: str  # the data types that the model computes in
    is_queued: bool  # whether calls return before the device has computed
    progress: Progress

    def make(self, heads: ExitHeads | None) -> Drafting | None:
        """Build what drafts as the configuration says; None: nothing drafts."""
        exits, ops, clock = self.config.exits, self.decoder.ops, self.clock
        if heads is None and not exits.lookup:
            return None
        if heads is not None and isinstance(self.runner, GraphRunner):
            heads = self.runner.heads(heads)
        layers = [] if heads is None else list(heads.exit_layers)
        if isinstance(clock, ModelledClock):
            cost = clock.cost
            heads = None if heads is None else clock.watch_heads(heads)
        else:
            cost = self._measure(heads, layers)
        policy = ExitPolicy(len(layers), cost, longest_step_s=exits.target_itl_s)
        chances = Chances(layers, {} if heads is None else heads.calibration)
        drafter = PolicyDrafter(
            policy,
            chances,
            exit_layers=layers,
            exit_evaluator=None if heads is None else ExitEvaluator(heads, Sampler(ops)),
            has_lookup=exits.lookup,
            threshold=exits.threshold,
            clock=clock,
            is_queued=self.is_queued,
        )
        return Drafting(drafter=drafter, policy=policy, chances=chances)

    def _measure(self, heads: ExitHeads | None, exit_layers: Sequence[int]) -> CostModel:
        """Return what the parts of a step cost here."""
        self.progress("measuring what drafts cost", 0.0)
        block_size, ops, runner = self.config.cache.block_size, self.decoder.ops, self.runner
        rows = DummyRows(self.decoder, self.cache, runner, heads) if self.is_queued else None
        num_segments = len(exit_layers) + 1
        profiler = Profiler(runner, num_segments, heads, block_size, ops, self.clock, rows)
        return cost_model(profiler, cache_root() / "costs", self._facts(heads, exit_layers))

    def _facts(self, heads: ExitHeads | None, exit_layers: Sequence[int]) -> dict[str, str]:
        """Return everything that the cost of the parts of a step depends on."""
        ops = self.decoder.ops
        shape = () if heads is None else (len(heads.token_ids), *heads.refinement_sizes)
        graphs = self.runner.sizes if isinstance(self.runner, GraphRunner) else "none"
        return {
            "model": self.decoder.fingerprint,
            "exits": f"{list(exit_layers)}, {shape}",
            "head numbers": describe_heads(ops),
            "numbers": self.numbers,
            "machine": describe_machine(self.config, ops),
            "clock": getattr(self.clock, "__name__", ""),
            "counted": "with the host's work" if self.is_queued else "parts",
            "graphs": graphs,
        }
