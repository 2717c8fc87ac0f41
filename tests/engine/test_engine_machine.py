"""Whatever happens, in any order, clients get the right output and nothing leaks.

Hypothesis adds, repeats and aborts requests, steps, renders, and kills the worker. Prompts share
prefixes, some of them under a salt; some requests have priority; some fail and leave garbage in
their blocks. Memory is so tight that sequences are preempted and blocks evicted all the time. Every
request that is not aborted ends once, with its one right output. It may end with an error only if
the worker was killed three times while it ran alone, or came back with too little memory for it.

ADADECODE_MACHINE_EXAMPLES sets the number of runs of up to 40 steps (`make machine`), and makes
every run random.
"""

import os
from dataclasses import replace
from typing import Literal

from engine_driver import EngineDriver
from fake_worker import (
    EOS_ID,
    ILL_SEED,
    KILLER_ID,
    FakeWorker,
    Letters,
    expected_embedding,
    expected_output,
    expected_prompt_logprobs,
    make_request,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from engine.config import SchedulerConfig
from engine.errors import PromptTooLong
from engine.request import EarlyExitOptions, FinishReason, GenerationRequest

EXAMPLES = os.environ.get("ADADECODE_MACHINE_EXAMPLES")
PREFIX = (9, 4, 17, 30, 2, 2, 25, 11)  # two blocks, the beginning of many prompts


class EngineMachine(RuleBasedStateMachine):
    """The rules by which the world acts on the engine, and the invariants."""

    @initialize(
        num_blocks=st.integers(6, 10),
        acceptance=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        max_draft_tokens=st.integers(0, 5),
        max_num_seqs=st.sampled_from([1, 3, 6, 8]),
        max_num_batched_tokens=st.sampled_from([1, 5, 12, 24]),
        policy=st.sampled_from(["fcfs", "priority"]),
        prefix_caching=st.sampled_from([True, True, True, False]),
        runs_ahead=st.booleans(),
    )
    def start(
        self,
        num_blocks: int,
        acceptance: float,
        max_draft_tokens: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        policy: Literal["fcfs", "priority"],
        prefix_caching: bool,
        runs_ahead: bool,
    ) -> None:
        worker = FakeWorker(
            num_blocks=num_blocks,
            acceptance=acceptance,
            max_draft_tokens=max_draft_tokens,
            runs_ahead=runs_ahead,
        )
        config = SchedulerConfig(
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            policy=policy,
            prefix_caching=prefix_caching,
        )
        self.has_priorities = policy == "priority"
        self.driver = EngineDriver(worker, config)
        self.requests: dict[str, GenerationRequest] = {}
        self.expected: dict[str, tuple[int, ...]] = {}
        self.aborted: set[str] = set()
        self.killers: set[str] = set()
        self.ill: set[str] = set()
        self.outgrowing: set[str] = set()  # do not fit the memory that some worker had

    @rule(
        times=st.sampled_from([1, 2, 4]),
        num_prompt=st.sampled_from([1, 3, 4, 5, 8]),
        max_tokens=st.sampled_from([0, 1, 2, 8, 12, 16]),
        min_tokens=st.integers(0, 4),
        ignore_eos=st.booleans(),
        stop_token_ids=st.sampled_from([(), (7, 8)]),
        max_drafts=st.none() | st.integers(0, 6),
        enabled=st.booleans(),
        num_shared=st.sampled_from([0, 4, 7, 8]),
        cache_salt=st.sampled_from(["", "", "salt"]),
        priority=st.integers(-1, 1),
        num_prompt_logprobs=st.sampled_from([None, None, 0]),
        pooling=st.sampled_from([None, None, "mean", "last"]),
    )
    def add(
        self,
        times: int,
        num_prompt: int,
        max_tokens: int,
        min_tokens: int,
        ignore_eos: bool,
        stop_token_ids: tuple[int, ...],
        max_drafts: int | None,
        enabled: bool,
        num_shared: int,
        cache_salt: str,
        priority: int,
        num_prompt_logprobs: int | None,
        pooling: Literal["mean", "last"] | None,
    ) -> None:
        for _ in range(times):
            request = make_request(
                len(self.requests),
                num_prompt,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                ignore_eos=ignore_eos,
                stop_token_ids=stop_token_ids,
                num_prompt_logprobs=num_prompt_logprobs,
                pooling=pooling,
                early_exit=EarlyExitOptions(enabled=enabled, max_draft_tokens=max_drafts),
            )
            self.take(
                replace(
                    request,
                    prompt_token_ids=PREFIX[:num_shared] + request.prompt_token_ids,
                    cache_salt=cache_salt,
                    priority=priority if self.has_priorities else 0,
                )
            )

    @rule(data=st.data())
    def ask_again(self, data: st.DataObject) -> None:
        """Repeat a request, as after a timeout, or continue its conversation."""
        request = self.draw_request(data)
        if request is not None:
            says_more = data.draw(st.booleans())
            more = (*self.driver.token_ids(request.request_id), 5) if says_more else ()
            prompt = request.prompt_token_ids + more
            self.take(
                replace(request, request_id=f"again-{len(self.requests)}", prompt_token_ids=prompt),
                like=request,
            )

    @rule(data=st.data())
    def add_one_that_fails(self, data: st.DataObject) -> None:
        """Add a request that leaves garbage in blocks that others would find by their tokens."""
        like = self.draw_request(data) or make_request(0)
        if like.request_id not in self.killers:
            ill = replace(
                like,
                request_id=f"ill-{len(self.requests)}",
                sampling=replace(like.sampling, seed=ILL_SEED),
            )
            self.ill.add(ill.request_id)
            self.take(ill)

    @rule()
    def add_a_killer(self) -> None:
        request_id = f"killer-{len(self.requests)}"
        self.killers.add(request_id)
        self.take(GenerationRequest(request_id=request_id, prompt_token_ids=(KILLER_ID, 5)))

    def take(self, request: GenerationRequest, like: GenerationRequest | None = None) -> None:
        """Add a request, unless it is too long for the pool."""
        try:
            self.driver.add(request)
        except PromptTooLong:
            return  # the next request gets its id
        for kind in (self.killers, self.ill):
            if like is not None and like.request_id in kind:
                kind.add(request.request_id)
        self.requests[request.request_id] = request
        is_ill = request.request_id in self.ill
        self.expected[request.request_id] = () if is_ill else expected_output(request)

    def draw_request(self, data: st.DataObject) -> GenerationRequest | None:
        """Draw one of the requests added so far."""
        return data.draw(st.sampled_from(list(self.requests.values()))) if self.requests else None

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        open_ids = [i for i in self.requests if not self.driver.finish_reasons(i)]
        if open_ids:
            request_id = data.draw(st.sampled_from(open_ids))
            self.driver.core.abort(request_id)
            self.aborted.add(request_id)

    @rule()
    def send(self) -> None:
        self.driver.send()

    @rule()
    def render(self) -> None:
        self.driver.render()

    @rule()
    def receive(self) -> None:
        self.driver.receive()

    @rule()
    def crash(self) -> None:
        self.driver.crash()

    @rule(num_blocks=st.integers(3, 10))
    def crash_and_come_back_with_other_memory(self, num_blocks: int) -> None:
        room = num_blocks * self.driver.worker.info.block_size
        self.driver.crash(num_blocks)
        self.outgrowing |= {
            request_id
            for request_id, request in self.requests.items()
            if len(request.prompt_token_ids) + len(self.expected[request_id]) > room
        }

    @rule(times=st.integers(1, 12))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.driver.send()
            self.driver.receive()

    @invariant()
    def nothing_is_inconsistent(self) -> None:
        if hasattr(self, "driver"):
            self.driver.core.check()

    @invariant()
    def what_clients_have_is_right_so_far(self) -> None:
        for request_id, right in getattr(self, "expected", {}).items():
            tokens = self.driver.token_ids(request_id)
            assert tokens == right[: len(tokens)]

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        self.driver.run_to_the_end()
        for request_id, request in self.requests.items():
            if request_id in self.aborted:
                assert not self.driver.finish_reasons(request_id)
                continue
            if request_id in self.ill:
                assert self.driver.finish_reasons(request_id) == [FinishReason.ERROR]
                continue
            if self.driver.finish_reasons(request_id) == [FinishReason.ERROR]:
                is_guilty = self.driver.num_kills_alone[request_id] >= 3
                assert is_guilty or request_id in self.outgrowing | self.killers
                continue
            assert request_id not in self.killers
            tokens = self.expected[request_id]
            assert self.driver.token_ids(request_id) == tokens
            assert len(self.driver.finish_reasons(request_id)) == 1
            sampling = request.sampling
            stops = {*sampling.stop_token_ids, *(() if sampling.ignore_eos else (EOS_ID,))}
            visible = tokens[:-1] if tokens and tokens[-1] in stops else tokens
            assert self.driver.text(request_id) == Letters().text(visible)
            outputs = self.driver.outputs[request_id]
            scores = tuple(score for output in outputs for score in output.prompt_logprobs)
            assert scores == expected_prompt_logprobs(request)
            assert outputs[-1].embedding == expected_embedding(request)
        stats = self.driver.core.stats()
        assert (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)
        assert stats.finished_total[FinishReason.ABORT] == len(self.aborted)
        assert sum(stats.finished_total.values()) == len(self.requests)
        assert not self.driver.worker.starts


EngineMachine.TestCase.settings = settings(
    max_examples=int(EXAMPLES or "100"),
    stateful_step_count=40,
    deadline=None,
    derandomize=EXAMPLES is None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
TestEngine = EngineMachine.TestCase
