"""An engine without a model, for tests of the server, with scripted text and failures."""

import asyncio
import codecs
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from engine import EngineInfo
from engine.errors import EngineStopped
from engine.output_slot import OutputSlot, next_output
from engine.policy_reason import PolicyReason, PolicyReport
from engine.request import (
    DraftFigures,
    ExitRecord,
    FinishReason,
    GenerationRequest,
    RequestOutput,
    Structure,
    TokenLogprobs,
    TokenTrace,
)
from engine.stats import EngineStats
from engine.tokenizer import TokenizerCard

NUM_LAYERS = 4
HIDDEN_SIZE = 4
EXIT_LAYER = 2


class ByteTokenizer:
    """One token per UTF-8 byte; ids from 256 on are control tokens."""

    vocab_size = 260
    eos_token_ids = (257,)

    def __init__(self, chat_template: str = "{{ messages }}") -> None:
        """
        Args:
            chat_template: What the card shows; chats are encoded in the same way whatever it says.
        """
        self._chat_template = chat_template
        self.variables: dict[str, object] = {}  # of the last call of the chat template
        self.turns: list[dict[str, str]] = []  # the conversation of that call

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token_id for token_id in ids if token_id < 256).decode(errors="replace")

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> list[int]:
        self.variables, self.turns = variables, messages
        ids: list[int] = []
        for message in messages:
            ids += [256, *self.encode(f"{message['role']}:{message['content']}")]
        return [*ids, 258] if add_generation_prompt else ids

    def is_special(self, token_id: int) -> bool:
        return token_id >= 256

    def control_token_id(self, text: str) -> int | None:
        return 259 if text == "[TOOL_CALLS]" else None

    def token_piece(self, token_id: int) -> str:
        return f"<{token_id}>"

    @property
    def card(self) -> TokenizerCard:
        return TokenizerCard(
            tokenizer_class="ByteTokenizer",
            bos_token=None,
            eos_token="<257>",
            pad_token=None,
            unk_token=None,
            chat_template=self._chat_template,
        )

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id])

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < 256 else b""


@dataclass
class FakeEngine:
    """An engine that streams a text byte by byte; tests set its fields."""

    text: str | Callable[[GenerationRequest], str] = "Hello world!"
    logprob: Callable[[GenerationRequest], float] = lambda _: -0.5
    num_cached_tokens: Callable[[GenerationRequest], int] = lambda _: 0
    info: EngineInfo = field(
        default_factory=lambda: EngineInfo(
            max_model_len=256,
            vocab_size=ByteTokenizer.vocab_size,
            num_layers=NUM_LAYERS,
            hidden_size=HIDDEN_SIZE,
            exit_layers=[EXIT_LAYER],
            has_lookup=False,
            max_draft_tokens=3,
            backend="fake",
            device="cpu",
            dtype="float32",
            numbers="float32",
            num_blocks=64,
            block_size=16,
        )
    )
    tokenizer: ByteTokenizer = field(default_factory=ByteTokenizer)
    token_delay_s: float = 0.0
    start_error: Exception | None = None  # raised by start()
    refusal: Exception | None = None  # raised before any output
    # Raised when a structure is to be approved.
    structure_error: Exception | Callable[[Structure], Exception | None] | None = None
    structure_delay_s: float = 0.0  # to approve one
    num_approving: int = 0  # structures
    structures: list[Structure] = field(default_factory=list)  # those that were to be approved
    failure: Exception | None = None  # ends a stream after `failure_after` tokens
    failure_after: int = 3
    finish_with: FinishReason | None = None  # ends an output after `failure_after` tokens
    fatal_error: Exception | None = None
    is_recovering: bool = False
    is_started: bool = False
    is_stopped: bool = False
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)  # ids of requests closed before their end
    open_ids: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _ending: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_ready(self) -> bool:
        return self.is_started and not self.is_stopped

    async def start(self) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.is_started = True

    async def stop(self, timeout_s: float = 0) -> None:
        self.is_stopped = True
        deadline = asyncio.get_running_loop().time() + timeout_s
        while self.open_ids and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self.finish_with, self.failure_after = FinishReason.ABORT, 0
        self._ending.set()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.open_ids),
            num_blocks=64,
            num_blocks_used=16,
            generation_tokens_total=12,
            drafts_total=4,
            draft_tokens_total=6,
            accepted_tokens_total=5,
            accepted_per_position=[4, 1],
            drafted_by_layer={EXIT_LAYER: 6},
            accepted_by_layer={EXIT_LAYER: 5},
            policy=PolicyReport(reason=PolicyReason.DRAFTING),
        )

    def check_room(self, num_requests: int = 1, num_tokens: int = 0) -> None:
        pass

    def admit(self, requests: Sequence[GenerationRequest]) -> list[OutputSlot]:
        if self.refusal is not None:
            raise self.refusal
        if self.is_stopped:
            raise EngineStopped("stopped")
        return [self._begin(request) for request in requests]

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[RequestOutput, None]:
        [slot] = self.admit([request])
        while True:
            output = await next_output(slot)
            yield output
            if output.finish_reason is not None:
                return

    async def approve(self, structure: Structure) -> None:
        self.structures.append(structure)
        self.num_approving += 1
        try:
            await asyncio.sleep(self.structure_delay_s)
        finally:
            self.num_approving -= 1
        error = self.structure_error
        if callable(error):
            error = error(structure)
        if error is not None:
            raise error

    def abort(self, request_id: str) -> None:
        if request_id in self.open_ids:
            self.open_ids.discard(request_id)
            self.aborted.append(request_id)

    def has_started(self, request_id: str) -> bool:
        return True

    def _begin(self, request: GenerationRequest) -> OutputSlot:
        slot = OutputSlot(request.output_interval)
        self.requests.append(request)
        self.open_ids.add(request.request_id)
        task = asyncio.create_task(self._generate(request, slot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return slot

    async def _generate(self, request: GenerationRequest, slot: OutputSlot) -> None:
        """Put outputs token by token, each once the one before was taken, so that none merge."""
        for output in self._outputs(request):
            await self._compute()
            while slot.is_ready:
                await asyncio.sleep(0)
            if request.request_id not in self.open_ids:
                return
            if self.failure and output.num_output_tokens > self.failure_after:
                slot.fail(self.failure)
                return
            has_to_end = self.finish_with and output.num_output_tokens > self.failure_after
            last = _ended(output, self.finish_with) if has_to_end else output
            if last.finish_reason is not None:
                self.open_ids.discard(request.request_id)
            slot.put(last)
            if last.finish_reason is not None:
                return

    async def _compute(self) -> None:
        """Wait for as long as a token takes, or until the engine is told to end."""
        await asyncio.sleep(0)
        if self.token_delay_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), self.token_delay_s)

    def _outputs(self, request: GenerationRequest) -> Iterator[RequestOutput]:
        if request.pooling is not None:
            yield replace(
                _nothing(request),
                embedding=_embedding(request),
                finish_reason=FinishReason.LENGTH,
            )
            return
        text = self.text if isinstance(self.text, str) else self.text(request)
        stop_reason = None
        for stop in request.sampling.stop:
            text, found, _ = text.partition(stop)
            stop_reason = found or stop_reason
        token_ids = list(text.encode())
        kept = token_ids[: request.sampling.max_tokens]
        if not kept:
            yield replace(
                _nothing(request),
                finish_reason=FinishReason.LENGTH if token_ids else FinishReason.STOP,
                prompt_logprobs=_prompt_logprobs(request),
                draft_figures=_figures(request),
            )
        characters = codecs.getincrementaldecoder("utf-8")("replace")
        for place, token_id in enumerate(kept):
            is_last = place == len(kept) - 1
            reason = FinishReason.STOP if len(kept) == len(token_ids) else FinishReason.LENGTH
            yield RequestOutput(
                request_id=request.request_id,
                text=characters.decode(bytes([token_id]), place == len(kept) - 1),
                token_ids=(token_id,),
                logprobs=_logprobs(request, token_id, self.logprob(request)),
                trace=_trace(request, token_id, place),
                prompt_logprobs=() if place else _prompt_logprobs(request),
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=place + 1,
                num_cached_tokens=self.num_cached_tokens(request),
                finish_reason=reason if is_last else None,
                stop_reason=stop_reason if is_last and reason is FinishReason.STOP else None,
                draft_figures=_figures(request) if is_last else None,
            )


def _embedding(request: GenerationRequest) -> tuple[float, ...]:
    """Return a vector, not of length 1, that depends on the prompt and on the pooling."""
    first = request.prompt_token_ids[-1 if request.pooling == "last" else 0]
    return (float(first), 3.0, 4.0, 12.0)


def _nothing(request: GenerationRequest) -> RequestOutput:
    return RequestOutput(
        request_id=request.request_id,
        text="",
        token_ids=(),
        num_prompt_tokens=len(request.prompt_token_ids),
        num_output_tokens=0,
    )


def _ended(output: RequestOutput, reason: FinishReason) -> RequestOutput:
    return RequestOutput(
        request_id=output.request_id,
        text="",
        token_ids=(),
        num_prompt_tokens=output.num_prompt_tokens,
        num_output_tokens=output.num_output_tokens - 1,
        finish_reason=reason,
        error="row failed at /secret/path" if reason is FinishReason.ERROR else None,
    )


def _logprobs(
    request: GenerationRequest, token_id: int, logprob: float
) -> tuple[TokenLogprobs, ...]:
    num_logprobs = request.sampling.num_logprobs
    if num_logprobs is None:
        return ()
    others = tuple((ord("a") + i, -1.0 - i) for i in range(max(0, num_logprobs - 1)))
    top = ((token_id, logprob), *others) if num_logprobs else ()
    return (TokenLogprobs(token_id=token_id, logprob=logprob, top=top),)


def _prompt_logprobs(request: GenerationRequest) -> tuple[TokenLogprobs, ...]:
    """Give the token at place i log-probability -i / 8; the likelier ones are always the same."""
    num_top = request.sampling.num_prompt_logprobs
    if num_top is None:
        return ()
    top = tuple((ord("x") + i, -0.01 * (1 + i)) for i in range(num_top))
    return tuple(
        TokenLogprobs(token_id=token_id, logprob=-place / 8, top=top, rank=7)
        for place, token_id in enumerate(request.prompt_token_ids)
        if place > 0
    )


def _trace(request: GenerationRequest, token_id: int, place: int) -> tuple[TokenTrace, ...]:
    if not request.early_exit.return_trace:
        return ()
    if not _drafts(request):
        return (TokenTrace(token_id=token_id, exit_layer=NUM_LAYERS, confidence=None),)
    if place % 2 == 0:
        return (TokenTrace(token_id=token_id, exit_layer=EXIT_LAYER, confidence=0.9),)
    wrong = ExitRecord(token_id=ord("?"), exit_layer=EXIT_LAYER, confidence=0.6, accepted=False)
    return (
        TokenTrace(token_id=token_id, exit_layer=NUM_LAYERS, confidence=None, rejected=(wrong,)),
    )


def _drafts(request: GenerationRequest) -> bool:
    return request.early_exit.enabled and request.early_exit.max_draft_tokens != 0


def _figures(request: GenerationRequest) -> DraftFigures:
    policy = request.early_exit.under(PolicyReport(reason=PolicyReason.DRAFTING))
    if not _drafts(request):
        return DraftFigures(
            num_steps=0,
            num_draft_tokens=0,
            num_accepted_tokens=0,
            acceptance_histogram=(),
            accepted_by_layer={},
            drafted_by_layer={},
            policy=policy,
        )
    return DraftFigures(
        num_steps=4,
        num_draft_tokens=6,
        num_accepted_tokens=5,
        acceptance_histogram=(0, 3, 1),
        accepted_by_layer={EXIT_LAYER: 5},
        drafted_by_layer={EXIT_LAYER: 6},
        policy=policy,
    )
