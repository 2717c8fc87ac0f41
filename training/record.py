"""Records hidden states while text is generated, so that no second pass is needed.

States are kept like keys and values, by KV slot: every pass stores those of its tokens in their
slots, with one operation per layer and no copy off the device; sequences that share a prefix's
blocks share its states. When a sequence ends, its slots are read before others can reuse them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.config import EngineConfig
from engine.model.decoder import Decoder
from engine.model.ops.interface import TokenBatch
from engine.plan import RowPlan, StepPlan, StepResult, WorkerInfo
from engine.request import Structure
from engine.worker.worker import ModelWorker
from training.states import RowStates


class SlotStates:
    """Hidden states at some layers and the last one, and figures of the final logits, by KV slot.

    Implements `PassObserver`.
    """

    def __init__(self, exit_layers: Sequence[int]) -> None:
        self.layers = list(exit_layers)
        self._hidden: dict[int, Tensor] = {}
        self._log_normalizer = self._target = torch.empty(0)
        self._chosen: list[int] = []

    def allocate(self, num_slots: int, num_layers: int, like: Tensor) -> None:
        """Allocate the tensors.

        Args:
            like: [E], a tensor with the type and on the device of hidden states.
        """
        self._hidden = {
            layer: like.new_empty(num_slots, len(like)) for layer in (*self.layers, num_layers)
        }
        self._log_normalizer = torch.empty(num_slots, device=like.device)
        self._target = torch.empty(num_slots, dtype=torch.int64, device=like.device)

    def expect(self, slots: list[int]) -> None:
        """Set the slots of the tokens that the next logits belong to."""
        self._chosen = slots

    def see_states(self, layer: int, hidden: Tensor, batch: TokenBatch) -> None:
        """See `PassObserver`."""
        self._hidden[layer].index_copy_(0, batch.slots.long(), hidden)

    def see_logits(self, logits: Tensor) -> None:
        """See `PassObserver`."""
        slots = torch.tensor(self._chosen, device=logits.device)
        self._log_normalizer.index_copy_(0, slots, logits.logsumexp(-1))
        self._target.index_copy_(0, slots, logits.argmax(-1))

    def read(self, slots: Sequence[int]) -> RowStates:
        """Return the states of one sequence, given its slots."""
        places = torch.tensor(slots, device=self._target.device)
        *exits, (_, last) = ((layer, kept[places]) for layer, kept in self._hidden.items())
        is_first = torch.zeros(len(slots), dtype=torch.bool, device=places.device)
        is_first[0] = True
        logits = (self._log_normalizer[places], self._target[places])
        return RowStates.of(dict(exits), last, logits, is_first)


@dataclass(slots=True)
class _Sequence:
    """A running sequence."""

    num_prompt_tokens: int
    is_restarted: bool  # it was preempted: what its logits were before is lost
    block_table: list[int]
    num_computed: int = 0


class RecordingWorker:
    """A worker without early exits that keeps the states of every finished sequence."""

    def __init__(
        self, config: EngineConfig, exit_layers: Sequence[int], decoder: Decoder | None = None
    ) -> None:
        """Load the model, unless a decoder is given.

        Raises:
            ModelLoadError: if the model cannot be served.
        """
        self._states = SlotStates(exit_layers)
        self._worker = ModelWorker(config, decoder=decoder, observer=self._states)
        self.info: WorkerInfo = self._worker.info
        decoder, self._block_size = self._worker.decoder, self.info.block_size
        num_slots = (self.info.num_blocks + 1) * self._block_size
        self._states.allocate(num_slots, decoder.spec.num_layers, decoder.final_norm)
        self._running: dict[int, _Sequence] = {}
        self._finished: dict[int, RowStates | None] = {}

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step."""
        for sequence_id in plan.ended:
            self._finish(sequence_id)
        for start in plan.started:
            is_known = start.sequence_id in self._finished
            self._running[start.sequence_id] = _Sequence(start.num_prompt_tokens, is_known, [])
        self._states.expect([self._slot(row) for row in plan.rows if row.is_decoding])
        result = self._worker.execute(plan)
        for row in plan.rows:
            sequence = self._running[row.sequence_id]
            sequence.block_table = list(row.block_table)
            sequence.num_computed = row.start + row.num_tokens
        return result

    def prepare(self, structure: Structure) -> None:
        """See `ModelWorker.prepare`."""
        self._worker.prepare(structure)

    def rest(self, *, is_idle: bool) -> bool:
        """See `ModelWorker.rest`."""
        return self._worker.rest(is_idle=is_idle)

    def take_states(self) -> list[RowStates | None]:
        """Return and forget the states of all sequences, in the order they came, when all ended.

        None stands for a sequence that was preempted or has too few tokens.
        """
        for sequence_id in list(self._running):
            self._finish(sequence_id)
        finished, self._finished = self._finished, {}
        return [finished[sequence_id] for sequence_id in sorted(finished)]

    @torch.inference_mode()
    def _finish(self, sequence_id: int) -> None:
        sequence = self._running.pop(sequence_id, None)
        if sequence is None:
            return
        size, table = self._block_size, sequence.block_table
        kept = range(max(0, sequence.num_prompt_tokens - 2), sequence.num_computed)
        is_whole = not sequence.is_restarted and len(kept) > 1
        slots = [table[position // size] * size + position % size for position in kept]
        self._finished[sequence_id] = self._states.read(slots) if is_whole else None

    def _slot(self, row: RowPlan) -> int:
        """Return the slot of the row's newest token, whose logits choose the next one."""
        position, size = row.start + row.num_tokens - 1, self._block_size
        return row.block_table[position // size] * size + position % size
