"""The server's settings: one definition per flag; flags, YAML keys and environment follow from it.

A field `max_num_seqs` is `--max-num-seqs`, the YAML key `max-num-seqs` (or with underscores) and
the variable `ADADECODE_MAX_NUM_SEQS`. `settings_sources` reads and merges the sources; the outcome
is turned into an `EngineConfig` here, so that the engine needs to know nothing of flags.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from engine.config import (
    CacheConfig,
    ChatConfig,
    EngineConfig,
    ExitsConfig,
    ModelConfig,
    SchedulerConfig,
    StructureConfig,
    SupervisionConfig,
)
from server.settings_values import (
    ChatTemplate,
    GenerationConfig,
    GenerationOverrides,
    HeadsDirectory,
    HttpUrl,
    InputFile,
    KeyFile,
    NameList,
    Names,
    Origins,
    OutputFile,
    RootPath,
    Secrets,
    Size,
    TemplateVariables,
    Text,
    keys_in,
    template_in,
)

DEFAULT_MODEL = "smollm2-135m-instruct"


def _flag(default: Any, group: str, help_text: str, **bounds: Any) -> Any:
    return Field(default, description=help_text, json_schema_extra={"group": group}, **bounds)


class ServerSettings(BaseModel):
    """All settings of `adadecode serve`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: Text = _flag(
        DEFAULT_MODEL, "model", "Hugging Face directory, .gguf file, hub id or built-in alias."
    )
    served_model_name: Names = _flag(
        (), "model", "Name in the API instead of MODEL; repeat for several."
    )
    revision: Text | None = _flag(
        None, "model", "Branch, tag or commit of a hub id (default: its default branch)."
    )
    max_model_len: int | None = _flag(
        None,
        "model",
        "Longest prompt plus output, in tokens (default and maximum: the model's own).",
        ge=2,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _flag(
        "auto", "model", "Data type of weights and, on a GPU, activations."
    )
    quantization: Literal["auto", "none", "int8", "q4"] = _flag(
        "auto",
        "model",
        "CPU weights: auto keeps a GGUF file's own blocks, which changes no bit of the output; "
        "none expands them; int8 and q4 also round weights that are not quantized.",
    )
    activation_quantization: Literal["none", "int8"] = _flag(
        "none",
        "model",
        "CPU: int8 rounds what quantized weights are multiplied with to 8 bits as well, in blocks "
        "of 32, as llama.cpp does: quicker, but no longer what the weights' float32 values give. "
        "Early exits change no token all the same.",
    )
    device: Literal["auto", "cpu", "cuda"] = _flag("auto", "model", "Where the model runs.")
    threads: int | None = _flag(
        None,
        "model",
        "CPU threads of the worker (default: all cores the process may use).",
        ge=1,
        le=1024,
    )
    pin_threads: Literal["auto", "always", "never"] = _flag(
        "auto",
        "model",
        "Keep each CPU thread on a core of its own. auto: only with fewer --threads than cores, so "
        "that the server has one too; a pinned thread whose core is taken holds up all others.",
    )
    backend: Literal["auto", "native", "torch"] = _flag(
        "auto",
        "model",
        "Kernels: the device's fastest, those compiled for this CPU, or plain torch.",
    )
    exact: bool = _flag(
        True,
        "model",
        "GPU: a token's bits never depend on what shares its batch, so early exits change none; "
        "checked at start-up. Without it, cuBLAS computes matrix products.",
    )
    enforce_eager: bool = _flag(False, "model", "GPU: launch kernels one by one, no CUDA graphs.")
    seed: int | None = _flag(
        None, "model", "Makes the seeds drawn for requests without a seed repeatable.", ge=0
    )
    generation_config: GenerationConfig = _flag(
        "auto",
        "model",
        "Sampling values of requests that leave them out. auto: those of MODEL's "
        "generation_config.json, none (or vllm): OpenAI's, or another directory or file.",
    )
    override_generation_config: GenerationOverrides = _flag(
        {},
        "model",
        """Values that win over those of --generation-config, e.g. '{"temperature": 0.2}'.""",
    )

    chat_template: ChatTemplate | None = _flag(
        None,
        "model",
        "Jinja file, or template, that chats are rendered with (default: MODEL's own).",
    )
    default_chat_template_kwargs: TemplateVariables = _flag(
        {},
        "model",
        "What the chat template is told where a request's chat_template_kwargs do not say, e.g. "
        """'{"enable_thinking": false}'.""",
    )

    max_num_seqs: int = _flag(64, "scheduler", "Sequences running at once.", ge=1, le=4096)
    max_num_batched_tokens: int = _flag(
        512, "scheduler", "Tokens computed per step, decoding rows first.", ge=1
    )
    max_num_queued_reqs: int = _flag(
        1024,
        "scheduler",
        "Requests that may wait besides those that run; more are answered 503 with Retry-After.",
        ge=0,
    )
    max_num_queued_tokens: int | None = _flag(
        None, "scheduler", "Prompt tokens that may wait together (default: no limit).", ge=1
    )
    kv_cache_memory: Size | None = _flag(
        None, "scheduler", "KV cache, e.g. 512M or 2G (default: from free memory).", ge=1
    )
    gpu_memory_utilization: float | None = _flag(
        None,
        "scheduler",
        "Share of the GPU's memory that may be in use, by other processes as well (default: 0.9).",
        gt=0,
        le=1,
    )
    enable_prefix_caching: bool = _flag(
        True, "scheduler", "Share KV blocks among requests that begin with the same tokens."
    )
    scheduling_policy: Literal["fcfs", "priority"] = _flag(
        "fcfs",
        "scheduler",
        "Who runs first: the oldest request, or the one with the lowest `priority`.",
    )
    block_size: int = _flag(16, "scheduler", "Tokens per KV block.", ge=1, le=1024)

    step_timeout: float = _flag(
        300.0, "scheduler", "Seconds a step may take before the worker is replaced.", gt=0
    )
    heartbeat_timeout: float = _flag(
        10.0, "scheduler", "Seconds the worker may be silent before it is replaced.", gt=0
    )

    early_exit: bool = _flag(
        True, "early exit", "Decode with early exits; never changes the output."
    )
    heads: HeadsDirectory | None = _flag(
        None, "early exit", "Directory of exit heads (default: those that belong to MODEL)."
    )
    lookup_drafts: bool = _flag(
        True,
        "early exit",
        "Also draft what followed the same tokens earlier in the prompt or output.",
    )
    second_candidates: bool = _flag(
        True, "early exit", "Verify a head's second choice beside its first where that pays."
    )
    exit_threshold: float | None = _flag(
        None, "early exit", "Fixed confidence threshold (default: cost-aware policy).", ge=0, le=1
    )
    target_itl_ms: float | None = _flag(
        None,
        "early exit",
        "For even rather than bursty output: drafts never make a step longer than this, and a "
        "step's tokens are sent one after the other (default: no limit, all tokens at once).",
        gt=0,
    )
    max_draft_tokens: int = _flag(
        15, "early exit", "Longest run of drafts before verification.", ge=0, le=16
    )
    learn_heads: bool = _flag(
        False,
        "early exit",
        "Train the exit heads on live traffic, once verified; never changes the output.",
    )
    learn_heads_share: float = _flag(
        0.1, "early exit", "Share of the worker's time that learning may take.", gt=0, le=0.5
    )
    learn_heads_dir: Path | None = _flag(
        None, "early exit", "Where learned heads are kept (default: heads/ in the cache)."
    )

    host: Text = _flag("127.0.0.1", "http", "Address to listen on.")
    port: int = _flag(8000, "http", "Port to listen on; 0 picks a free one.", ge=0, le=65535)
    address_file: OutputFile | None = _flag(
        None, "http", "Keep the address that is listened on in this file, for scripts and checks."
    )
    api_key: Secrets = _flag(
        (),
        "http",
        "Require this key (Authorization: Bearer); repeat for several. A key with a comma in it: "
        "here, in a YAML list or in --api-key-file.",
    )
    api_key_file: KeyFile | None = _flag(None, "http", "File of further keys, one per line.")
    root_path: RootPath = _flag(
        "", "http", "Path prefix under which a proxy offers this server, e.g. /llm."
    )
    ui: bool = _flag(True, "http", "Serve a page to chat with the model at /.")
    max_request_bytes: Size = _flag(
        "4M", "http", "Largest request body.", ge=1, validate_default=True
    )
    reject_unknown_fields: bool = _flag(
        False, "http", "Refuse requests with unknown fields (default: only count them)."
    )
    max_concurrent_per_key: int | None = _flag(
        None,
        "http",
        "Open requests per API key, or per client address without keys; more are answered 429.",
        ge=1,
    )
    queue_timeout: float = _flag(
        0.0,
        "http",
        "Seconds a request may wait to run before it is answered 503; 0 = no limit.",
        ge=0,
    )
    request_timeout: float = _flag(
        0.0, "http", "Seconds a request may take in all before it is ended; 0 = no limit.", ge=0
    )
    write_timeout: float = _flag(
        60.0,
        "http",
        "Seconds a client may go without reading before its connection is closed.",
        gt=0,
    )
    timeout_keep_alive: int = _flag(
        30, "http", "Seconds an idle connection is kept for another request.", ge=1
    )
    max_connections: int = _flag(
        8192, "http", "Open connections; more are answered 503, probes excepted.", ge=1
    )
    h11_max_incomplete_event_size: Size = _flag(
        "64K", "http", "Largest request head.", ge=1024, validate_default=True
    )
    h11_max_header_count: int = _flag(256, "http", "Most headers in a request.", ge=1)
    max_logprobs: int = _flag(20, "http", "Most top log-probabilities per token.", ge=0, le=20)
    pooling_type: Literal["mean", "last"] = _flag(
        "mean", "http", "What an embedding is made of: all tokens' last states, or the last one's."
    )
    tool_call_parser: Literal["auto", "hermes", "llama3_json", "mistral"] = _flag(
        "auto", "http", "Form of tool calls; auto: the chat template's."
    )
    reasoning_parser: Literal["auto", "none", "qwen3", "deepseek_r1"] = _flag(
        "auto",
        "http",
        "How thoughts are split from answers: as the chat template has them, not at all, within "
        "<think> tags, or from an answer's first word up to </think>.",
    )
    stream_interval: int = _flag(
        1, "http", "Tokens per event of a stream; larger values cost the server less.", ge=1
    )
    structure_timeout: float = _flag(
        10.0,
        "http",
        "Seconds of CPU time a schema, pattern or grammar may take to compile.",
        gt=0,
        le=600,
    )
    sse_keep_alive_interval: float = _flag(
        15.0, "http", "Seconds between keep-alive comments on a silent stream; 0 = none.", ge=0
    )
    shutdown_timeout: float = _flag(
        30.0, "http", "Seconds that open requests get to finish at SIGTERM.", ge=0
    )

    ssl_certfile: InputFile | None = _flag(
        None, "tls", "Certificate; with one, the server speaks HTTPS."
    )
    ssl_keyfile: InputFile | None = _flag(
        None, "tls", "Private key of --ssl-certfile (default: in the same file)."
    )
    ssl_ca_certs: InputFile | None = _flag(
        None, "tls", "CA certificates that clients' certificates are checked against."
    )
    ssl_cert_reqs: int = _flag(
        0, "tls", "Client certificates: 0 not asked for, 1 checked if sent, 2 required.", ge=0, le=2
    )

    allowed_origins: Origins = _flag(
        (), "cors", "Web pages of this origin may call the API; repeat for several, * for all."
    )
    allowed_methods: NameList = _flag(
        ("*",), "cors", "Methods that pages of --allowed-origins may use."
    )
    allowed_headers: NameList = _flag(
        ("*",), "cors", "Headers that pages of --allowed-origins may send."
    )
    allow_credentials: bool = _flag(
        False, "cors", "Pages of --allowed-origins may send credentials."
    )

    log_level: Literal["debug", "info", "warning", "error"] = _flag(
        "info", "observability", "Log verbosity."
    )
    access_log: Literal["text", "json", "none"] = _flag(
        "text", "observability", "One line per request: for people, for machines, or none."
    )
    otlp_traces_endpoint: HttpUrl | None = _flag(
        None,
        "observability",
        "Send OpenTelemetry traces to this endpoint, e.g. http://127.0.0.1:4318/v1/traces.",
    )

    @model_validator(mode="after")
    def _check_tls(self) -> "ServerSettings":
        needs_certificate = self.ssl_keyfile or self.ssl_ca_certs or self.ssl_cert_reqs
        if needs_certificate and self.ssl_certfile is None:
            raise ValueError("TLS needs --ssl-certfile")
        if self.ssl_cert_reqs and self.ssl_ca_certs is None:
            raise ValueError("--ssl-cert-reqs needs --ssl-ca-certs")
        return self

    @model_validator(mode="after")
    def _check_learning(self) -> "ServerSettings":
        if self.learn_heads and not self.early_exit:
            raise ValueError("--learn-heads makes no sense with --no-early-exit")
        if self.learn_heads_dir is not None and not self.learn_heads:
            raise ValueError("--learn-heads-dir needs --learn-heads")
        return self

    @model_validator(mode="after")
    def _check_credentials(self) -> "ServerSettings":
        if self.allow_credentials and not self.allowed_origins:
            raise ValueError("--allow-credentials needs --allowed-origins")
        return self

    @property
    def api_keys(self) -> tuple[str, ...]:
        """Every key that the API accepts; if there are none, it asks for none."""
        given = (key.get_secret_value() for key in self.api_key)
        in_file = keys_in(self.api_key_file) if self.api_key_file else ()
        return (*given, *in_file)

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names that requests may use; the first is the one answers carry."""
        return self.served_model_name or (self.model,)

    def engine_config(self, directory: Path, heads: Path | None) -> EngineConfig:
        """Return the engine's share, for a model resolved to `directory` and its exit heads."""
        return EngineConfig(
            model=ModelConfig(
                directory=directory,
                device=self.device,
                dtype=self.dtype,
                quantization=self.quantization,
                activation_quantization=self.activation_quantization,
                max_model_len=self.max_model_len,
                num_threads=self.threads,
                pin_threads=self.pin_threads,
                backend=self.backend,
                exact=self.exact,
                enforce_eager=self.enforce_eager,
            ),
            cache=CacheConfig(
                block_size=self.block_size,
                kv_cache_memory_bytes=self.kv_cache_memory,
                gpu_memory_utilization=self.gpu_memory_utilization,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.max_num_batched_tokens,
                max_num_queued_requests=self.max_num_queued_reqs,
                max_num_queued_tokens=self.max_num_queued_tokens,
                policy=self.scheduling_policy,
                prefix_caching=self.enable_prefix_caching,
            ),
            supervision=SupervisionConfig(
                step_timeout_s=self.step_timeout, heartbeat_timeout_s=self.heartbeat_timeout
            ),
            structure=StructureConfig(timeout_s=self.structure_timeout),
            chat=ChatConfig(
                template=None if self.chat_template is None else template_in(self.chat_template),
                variables=self.default_chat_template_kwargs,
            ),
            exits=ExitsConfig(
                enabled=self.early_exit,
                heads=heads if self.early_exit else None,
                lookup=self.lookup_drafts,
                alternates=self.second_candidates,
                threshold=self.exit_threshold,
                target_itl_s=None if self.target_itl_ms is None else self.target_itl_ms / 1000,
                max_draft_tokens=self.max_draft_tokens,
                learn=self.learn_heads,
                learn_share=self.learn_heads_share,
                learn_directory=self.learn_heads_dir,
            ),
        )
