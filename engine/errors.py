"""The exceptions that the engine raises on purpose; `server/errors.py` has their status codes.

EngineError
├── RequestError           the caller's fault; carries the parameter's name and a code
│   ├── DeadEnd            its constraints leave no token to choose
│   ├── PromptTooLong      code context_length_exceeded
│   ├── TooManyChoices     more than the queue can ever hold
│   ├── StructureError     a schema, pattern or grammar that cannot be followed
│   └── UnsupportedOption  code unsupported_parameter
├── ModelNotFound          the request names a model that is not served
├── EngineOverloaded       the queue is full
├── DeadlinePassed         the request took longer than allowed
│   └── QueuedTooLong      it never ran in that time
├── EngineStopped          draining or stopped
├── RequestFailed          this request cannot be computed; others can
├── WorkerLost             the worker died, hangs or failed a step; it is replaced
├── EngineFailed           no worker can be had; every open request ends with it
└── ModelLoadError         start-up: the checkpoint cannot be served, and why
    ├── UnsupportedArchitecture
    ├── UnsafeCheckpoint   pickle weights, remote code
    └── HeadsMismatch      exit heads that were trained for other weights
"""


class EngineError(Exception):
    """Base of all engine errors."""


class RequestError(EngineError):
    """The request cannot be honoured as asked.

    Attributes:
        param: Name of the offending request parameter, or None.
        code: Machine-readable code for the error envelope.
    """

    code = "invalid_value"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        if code is not None:
            self.code = code


class DeadEnd(RequestError):
    """The output can neither go on nor end as asked, which shows only while it is generated."""

    code = "no_token_allowed"


class PromptTooLong(RequestError):
    """Prompt and requested output do not fit the model's context or the KV cache."""

    code = "context_length_exceeded"


class TooManyChoices(RequestError):
    """The request asks for more outputs at once than the queue can ever hold."""


class StructureError(RequestError):
    """The structure is malformed, or asks for something that would not be enforced."""


class UnsupportedOption(RequestError):
    """A known option that this server does not offer: refused by name, never ignored."""

    code = "unsupported_parameter"


class ModelNotFound(EngineError):
    """The request names a model that is not served here."""


class EngineOverloaded(EngineError):
    """The queue is full; come back after `retry_after_s`."""

    def __init__(self, message: str, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlinePassed(EngineError):
    """The request took longer than this server allows; it was ended."""


class QueuedTooLong(DeadlinePassed):
    """The request did not start to run in the time this server allows."""


class EngineStopped(EngineError):
    """The engine is draining or has stopped."""


class RequestFailed(EngineError):
    """The request cannot be computed, now or later; it was ended while the others go on."""


class WorkerLost(EngineError):
    """The worker died, hangs or failed a step. Nothing is lost with it; see `engine.supervisor`.

    Attributes:
        is_crash: What it computed brought it down (a fault, an exception, an endless step); nothing
            from outside (`kill -9`, lack of memory, SIGSTOP) ended or stopped it.
        was_killed: Somebody's signal ended it, rather than the kernel for lack of memory; that says
            next to nothing about what it computed.
    """

    def __init__(self, message: str, *, is_crash: bool = False, was_killed: bool = False) -> None:
        super().__init__(message)
        self.is_crash = is_crash
        self.was_killed = was_killed


class EngineFailed(EngineError):
    """No worker can be had any more; the request could not be finished."""


class ModelLoadError(EngineError):
    """The checkpoint cannot be served; the message says why and what to do."""


class UnsupportedArchitecture(ModelLoadError):
    """The checkpoint's architecture is not one of those we serve."""


class UnsafeCheckpoint(ModelLoadError):
    """The checkpoint would need pickle or remote code to load."""


class HeadsMismatch(ModelLoadError):
    """The exit heads do not belong to the weights."""
