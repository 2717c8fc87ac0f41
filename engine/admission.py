"""Decides which requests may queue: those that can run to their end, while the queue has room.

The rules depend only on the configuration and the model's limits; the caller passes in what is
waiting and running.
"""

from collections.abc import Collection

from engine.config import SchedulerConfig
from engine.errors import (
    EngineOverloaded,
    PromptTooLong,
    RequestError,
    TooManyChoices,
    UnsupportedOption,
)
from engine.limits import ModelLimits
from engine.request import GenerationRequest
from engine.sequence import Sequence

_MAX_RETRY_AFTER_S = 120  # OpenAI's clients give up rather than wait longer


class AdmissionRules:
    """Refuses requests that could never run, and requests that the queue has no room for."""

    def __init__(self, config: SchedulerConfig, limits: ModelLimits) -> None:
        self._config = config
        self._limits = limits
        # A row computes at least one token, so with more rows than tokens the youngest starve.
        self.max_rows = min(config.max_num_seqs, config.max_num_batched_tokens)

    def check_room(
        self, num_requests: int, num_tokens: int, *, num_running: int, waiting: Collection[Sequence]
    ) -> None:
        """Refuse new requests, all of them together, if the queue has no room for them.

        Args:
            num_requests: How many new requests there are.
            num_tokens: Prompt tokens of all new requests.
            num_running: Sequences that are running now.
            waiting: Sequences that are waiting now.

        Raises:
            EngineOverloaded: There is no room now.
            TooManyChoices: There never is: the requests are more than the queue can hold.
        """
        num_waiting = len(waiting)
        most = self.max_rows + self._config.max_num_queued_requests
        if num_requests > most:
            raise TooManyChoices(f"At most {most} choices can be made at once.", param="n")
        is_full = num_waiting + num_running + num_requests > most
        most_tokens = self._config.max_num_queued_tokens
        if not is_full and most_tokens is not None:
            # If nobody is waiting, requests are let in however long their prompts are.
            num_queued = sum(sequence.num_tokens for sequence in waiting)
            is_full = num_waiting > 0 and num_queued + num_tokens > most_tokens
        if is_full:
            waves = num_waiting // max(1, self.max_rows)
            raise EngineOverloaded(
                f"{num_waiting} requests are waiting already",
                retry_after_s=min(_MAX_RETRY_AFTER_S, 1 + waves),
            )

    def check_servable(self, request: GenerationRequest) -> None:
        """Refuse a request that could never run to its end.

        Raises:
            RequestError: The request could not; the message says why.
        """
        if request.priority != 0 and self._config.policy != "priority":
            message = "priority needs a server that runs with --scheduling-policy priority."
            raise UnsupportedOption(message, param="priority")
        num_prompt, num_output = len(request.prompt_token_ids), request.sampling.max_tokens
        if num_prompt == 0:
            raise RequestError("The prompt is empty.", param="prompt")
        limit = self._limits.max_model_len
        if num_prompt + num_output > limit:
            raise PromptTooLong(
                f"This model's maximum context length is {limit} tokens, but "
                f"{num_prompt + num_output} were requested ({num_prompt} in the prompt, "
                f"{num_output} to generate).",
                param="max_tokens",
            )
