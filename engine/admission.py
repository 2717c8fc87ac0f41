"""Which requests may queue: those that can run to their end, while there is room to wait.

Pure rules over the configuration and the model's limits; what waits and runs is told.
"""

from collections.abc import Collection

from engine.config import SchedulerConfig
from engine.errors import EngineOverloaded, PromptTooLong, RequestError, UnsupportedOption
from engine.limits import ModelLimits
from engine.request import GenerationRequest
from engine.sequence import Sequence

_MAX_RETRY_AFTER_S = 120  # OpenAI's clients do not wait longer


class AdmissionRules:
    """What is refused, and why."""

    def __init__(self, config: SchedulerConfig, limits: ModelLimits) -> None:
        self._config = config
        self._limits = limits
        # A row computes at least one token, so more rows than tokens would starve the youngest.
        self.max_rows = min(config.max_num_seqs, config.max_num_batched_tokens)

    def check_room(
        self, num_requests: int, num_tokens: int, *, num_running: int, waiting: Collection[Sequence]
    ) -> None:
        """Whether so many more requests, with so many prompt tokens in all, may queue.

        Args:
            num_running: Sequences that run now.
            waiting: Those that do not.

        Raises:
            EngineOverloaded: if not now.
            RequestError: if never, because they are too many together.
        """
        num_waiting = len(waiting)
        most = self.max_rows + self._config.max_num_queued_requests
        if num_requests > most:
            raise RequestError(f"At most {most} choices can be made at once.", param="n")
        is_full = num_waiting + num_running + num_requests > most
        most_tokens = self._config.max_num_queued_tokens
        if not is_full and most_tokens is not None:
            # Whoever finds nobody waiting is let in, however long.
            num_queued = sum(sequence.num_tokens for sequence in waiting)
            is_full = num_waiting > 0 and num_queued + num_tokens > most_tokens
        if is_full:
            waves = num_waiting // max(1, self.max_rows)
            raise EngineOverloaded(
                f"{num_waiting} requests are waiting already",
                retry_after_s=min(_MAX_RETRY_AFTER_S, 1 + waves),
            )

    def check_servable(self, request: GenerationRequest) -> None:
        """Refuse what could never run to its end.

        Raises:
            RequestError: naming what is wrong.
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
