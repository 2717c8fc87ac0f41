"""Forecasts the speed-up of exits by running the engine's decode step on recorded text.

Drafter and policy are the engine's own, but nothing is computed: the model's tokens and the heads'
opinions are read from records, and the time of a step is the policy's own estimate. So a forecast
is what the policy would expect of exits that were never served.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.exit_head import Calibration
from engine.model.ops.interface import TokenBatch
from engine.model.ops.torch_ops import TorchOps
from engine.model.spec import ModelSpec
from engine.plan import RowPlan, RowResult, SequenceStart
from engine.request import EarlyExitOptions, GenerationRequest, SamplingParams
from engine.sequence import Sequence as EngineSequence
from engine.worker.chances import Chances
from engine.worker.cost_model import CostModel
from engine.worker.decode_step import DecodeStep
from engine.worker.exit_evaluator import Arrival, Opinion, first_unseen
from engine.worker.exit_policy import ExitPolicy
from engine.worker.kv_cache import KvCache
from engine.worker.policy_drafter import PolicyDrafter
from engine.worker.row import Row
from engine.worker.segment_runner import NewestTokens
from engine.worker.sequence_state import SequenceState
from engine.worker.step_estimate import StepEstimate
from training.evaluate import BIN_EDGES, rates
from training.head_module import HeadModule
from training.states import HiddenStates
from training.train_head import unrolled

MOST_DRAFTS = 6  # per step; without prompt look-up, more hardly ever pay
_CHUNK = 1024
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class Opinions:
    """The tokens that an exit's head expects, at every position and after every number of drafts.

    Entry [i, d] is what it expects after the token at position i + 1 and d drafts that follow that
    one, all of them right.
    """

    token_ids: Tensor  # [N, MOST_DRAFTS + 1] int64; -1: something outside the reduced vocabulary
    confidence: Tensor  # [N, MOST_DRAFTS + 1] float32

    def agreement(self, states: HiddenStates) -> list[float]:
        """Return the share of right tokens by number of drafts before, where those are right."""
        shares = []
        alive = torch.ones(len(states.target), dtype=torch.bool)
        for draft in range(self.token_ids.shape[1]):
            alive, is_right = self._outcomes(states, draft, alive)
            shares.append(float(is_right[alive].float().mean()) if alive.any() else 0.0)
            alive &= is_right
        return shares

    def calibration(self, states: HiddenStates) -> Calibration:
        """Calibrate first drafts at temperature 0; other temperatures get the same rates."""
        alive, is_right = self._outcomes(
            states, 0, torch.ones(len(states.target), dtype=torch.bool)
        )
        outcomes = torch.stack((self.confidence[alive, 0], is_right[alive].float()), 1)
        greedy = rates(outcomes)
        return Calibration(edges=BIN_EDGES, greedy=greedy, sampled=greedy)

    def _outcomes(self, states: HiddenStates, draft: int, alive: Tensor) -> tuple[Tensor, Tensor]:
        """Return where the draft is still inside its sequence, and where it is right.

        Args:
            alive: [N], where all drafts before it are right.
        """
        shift = draft + 1
        target = torch.roll(states.target.long(), -shift)
        is_inside = ~torch.roll(states.is_first, -shift)
        is_inside[len(target) - shift :] = False
        return alive & is_inside, self.token_ids[:, draft] == target


@torch.inference_mode()
def form_opinions(head: HeadModule, states: HiddenStates, token_ids: Tensor) -> Opinions:
    """Evaluate a head at every position, with drafts unrolled.

    Args:
        token_ids: [V'], the reduced vocabulary.
    """
    device, depth = head.project.device, MOST_DRAFTS + 1
    columns = torch.cat((token_ids.long(), torch.tensor([-1]))).to(device)
    ids: list[Tensor] = []
    confidences: list[Tensor] = []
    for start in range(0, len(states.last), _CHUNK):
        end = min(start + _CHUNK, len(states.last))
        hidden = _padded(states.exit, start, end + depth, device)
        last = _padded(states.last, start, end + depth, device)
        best = [
            head.logits(state).softmax(-1).max(-1)
            for _, state in unrolled(head, hidden, last, depth)
        ]
        ids.append(torch.stack([columns[each.indices] for each in best], 1).cpu())
        confidences.append(torch.stack([each.values for each in best], 1).cpu())
    return Opinions(torch.cat(ids), torch.cat(confidences))


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The expected speed-up of a choice of exits."""

    exit_layers: list[int]
    threshold: float | None  # None: the policy decides
    speedup: float  # expected committed tokens per second, over plain decoding's


class Replay:
    """Recorded texts whose greedy decoding is replayed with any choice of exits."""

    def __init__(self, spec: ModelSpec, states: HiddenStates) -> None:
        """
        Args:
            states: States of greedy text; those at the exit layer are not read.
        """
        self._spec = spec
        self._target = states.target.tolist()
        starts = states.is_first.nonzero().flatten().tolist()
        ends = [*starts[1:], len(self._target)]
        self._spans = [(a, b) for a, b in zip(starts, ends, strict=True) if b - a > 1]
        nothing = torch.empty(0)
        self._decoder = Decoder(
            spec, TorchOps("cpu"), embedding=None, layers=[], final_norm=nothing, lm_head=None
        )

    @property
    def num_tokens(self) -> int:
        """The number of tokens that one replay decodes."""
        return sum(end - start - 1 for start, end in self._spans)

    @torch.inference_mode()
    def forecast(
        self,
        opinions: Mapping[int, Opinions],
        calibration: Mapping[int, Calibration],
        cost: CostModel,
        plain_step_s: float,
        threshold: float | None = None,
    ) -> Forecast:
        """Decode all texts once.

        Args:
            opinions: Opinions by exit layer; these are the exits.
            calibration: Calibration by exit layer.
            plain_step_s: Seconds of a step without exits.
            threshold: Fixed confidence threshold of all exits; None: the policy decides.
        """
        layers = sorted(opinions)
        evaluator = _RecordedEvaluator([opinions[layer] for layer in layers])
        drafter = _TimedDrafter(
            ExitPolicy(len(layers), cost),
            Chances(layers, calibration),
            exit_layers=layers,
            exit_evaluator=evaluator,
            has_lookup=False,
            threshold=threshold,
        )
        runner = _RecordedRunner(self._spec.vocab_size)
        step = DecodeStep(
            self._decoder, KvCache(torch.empty(0, 2)), _BLOCK_SIZE, drafter=drafter, runner=runner
        )
        seconds = 0.0
        for number, (start, end) in enumerate(self._spans):
            evaluator.begin(start)
            runner.target = self._target[start:end]
            pending = self._decode(step, number, end - start)
            seconds += drafter.take_seconds() + sum(map(cost.logits, pending))
        speedup = self.num_tokens * plain_step_s / seconds
        return Forecast(exit_layers=layers, threshold=threshold, speedup=round(speedup, 4))

    def _decode(self, step: DecodeStep, number: int, length: int) -> list[int]:
        """Decode one text; return how many tokens each step verified at the last layer."""
        state = SequenceState(_start(number))
        state.last_hidden = torch.zeros(1)
        table = list(range(-(-length // _BLOCK_SIZE)))
        pending = []
        while (known := len(state.token_ids)) <= length:
            plan = RowPlan(
                sequence_id=number,
                start=known - 1,
                num_tokens=1,
                block_table=table,
                max_draft_tokens=min(MOST_DRAFTS, length - known),
                is_decoding=True,
            )
            result = step.run([plan], [state])[0]
            pending.append(1 + len(result.drafts))
        return pending


class _RecordedEvaluator:
    """Stands in for `ExitEvaluator`: reads recorded opinions."""

    def __init__(self, opinions: Sequence[Opinions]) -> None:
        self._token_ids = [each.token_ids.tolist() for each in opinions]
        self._confidence = [each.confidence.tolist() for each in opinions]
        self._start = 0
        self._estimate = torch.zeros(1)

    def begin(self, start: int) -> None:
        """Begin the text whose first position has this index in the recorded states."""
        self._start = start

    def opinions(
        self, exit_index: int, arrivals: Sequence[Arrival], hidden: Tensor
    ) -> list[list[Opinion]]:
        """See `ExitEvaluator.opinions`."""
        return [self._view(exit_index, arrival) for arrival in arrivals]

    def _view(self, exit_index: int, arrival: Arrival) -> list[Opinion]:
        row, first = arrival.row, first_unseen(arrival)
        place = self._start + row.first_pending - 1
        ids, confidence = self._token_ids[exit_index][place], self._confidence[exit_index][place]
        del row.estimates[first + 1 :]
        view = []
        for count in range(first, len(row.drafts) + 1):
            row.estimates.append(self._estimate)
            token_id = ids[count] if ids[count] >= 0 else None
            view.append(Opinion(count, token_id, confidence[count]))
        return view


class _RecordedRunner:
    """Stands in for the model: a token's hidden state is its position."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self.target: list[int] = []

    def run_through(self, tokens: NewestTokens) -> Tensor | None:
        """See `SegmentRunner.run_through`."""
        return None

    def embed(self, token_ids: Tensor) -> Tensor:
        """See `SegmentRunner.embed`."""
        return torch.zeros(len(token_ids), 1)

    def run(self, index: int, hidden: Tensor, batch: TokenBatch) -> Tensor:
        """See `SegmentRunner.run`."""
        return batch.positions[:, None].float()

    def logits(self, hidden: Tensor) -> Tensor:
        """See `SegmentRunner.logits`."""
        logits = torch.zeros(len(hidden), self._vocab_size)
        for row, position in enumerate(hidden[:, 0].tolist()):
            logits[row, self.target[int(position)]] = 1.0
        return logits


class _TimedDrafter(PolicyDrafter):
    """A drafter that adds up the estimated times of its steps, without the final logits."""

    _seconds = 0.0

    def learn(
        self, rows: Sequence[Row], results: Sequence[RowResult], estimate: StepEstimate
    ) -> None:
        """See `Drafter.learn`."""
        super().learn(rows, results, estimate)
        self._seconds += estimate.seconds

    def take_seconds(self) -> float:
        """Return the seconds added up since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds


def _padded(tensor: Tensor, start: int, end: int, device: torch.device) -> Tensor:
    """Return rows [start, end), with zeros beyond the last."""
    rows = tensor[start:end].to(device).float()
    missing = end - start - len(rows)
    return torch.cat((rows, rows.new_zeros(missing, rows.shape[1])))


def _start(number: int) -> SequenceStart:
    """Return the start of a greedy sequence whose two prompt tokens are never read."""
    request = GenerationRequest(
        request_id=str(number),
        prompt_token_ids=(0, 0),
        sampling=SamplingParams(temperature=0.0),
        early_exit=EarlyExitOptions(lookup=False),
    )
    return EngineSequence(number, request, (), 2).start()
