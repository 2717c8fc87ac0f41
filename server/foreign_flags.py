"""vLLM's and llama.cpp's flags that are no settings here, and what to do instead.

Names of vLLM's whose meaning is the same are settings. These are what people pass besides, out of
habit or need: none is ignored, and the refusal says how to go on.
"""

_ADVICE = (  # names, what to do
    ("model m", "give the model without a flag: adadecode serve MODEL"),
    (
        "tensor-parallel-size tp pipeline-parallel-size pp data-parallel-size dp",
        "one GPU is used, the first of CUDA_VISIBLE_DEVICES; leave it out",
    ),
    ("trust-remote-code", "code that comes with a model is never run; leave it out"),
    ("tokenizer tokenizer-mode", "the tokenizer is MODEL's own; leave it out"),
    ("load-format config-format", "MODEL's files tell what they are; leave it out"),
    ("chat-template-content-format", "content is text, whatever its form; leave it out"),
    ("hf-overrides rope-scaling rope-theta", "change config.json in MODEL's directory"),
    ("download-dir", "set HF_HOME to keep what comes from the hub elsewhere"),
    ("hf-token", "set HF_TOKEN in the environment"),
    ("kv-cache-dtype", "the KV cache has the activations' data type (--dtype); leave it out"),
    ("num-gpu-blocks-override", "use --kv-cache-memory"),
    ("swap-space cpu-offload-gb", "weights and KV cache stay on the device; leave it out"),
    (
        "enable-chunked-prefill no-enable-chunked-prefill",
        "prompts are always computed in chunks; --max-num-batched-tokens bounds them",
    ),
    ("compilation-config O", "--enforce-eager turns CUDA graphs off; there is no more to choose"),
    ("async-scheduling attention-backend", "the engine chooses; leave it out"),
    (
        "speculative-config speculative-model num-speculative-tokens",
        "drafts come from exit heads and from the text itself; see --heads and --max-draft-tokens",
    ),
    ("enable-lora lora-modules", "there are no adapters; merge them into the weights"),
    (
        "task runner convert",
        "generation, scoring and embeddings are always offered; leave it out",
    ),
    ("enable-auto-tool-choice", "models may always call tools; leave it out"),
    ("enable-reasoning", "--reasoning-parser says how thoughts are split; leave it out"),
    (
        "guided-decoding-backend structured-outputs-config",
        "xgrammar compiles structures; leave it out",
    ),
    ("enable-prompt-tokens-details", "usage always counts cached tokens; leave it out"),
    ("enable-server-load-tracking", "/load is always there; leave it out"),
    ("api-server-count", "one process serves HTTP; leave it out"),
    (
        "enable-log-requests disable-log-requests disable-uvicorn-access-log",
        "what is sent is never logged; --access-log says what is",
    ),
    ("uvicorn-log-level", "use --log-level"),
    ("disable-log-stats", "figures are at /metrics and never logged; leave it out"),
    ("ctx-size c", "use --max-model-len"),
    ("parallel np", "use --max-num-seqs"),
    ("n-gpu-layers ngl", "a model is on one device as a whole; use --device"),
    ("t", "use --threads"),
)
_SHORT = 3  # letters of the longest name that is written with one dash

# Flag, with its dashes, to what to do.
FOREIGN_FLAGS = {
    f"{'-' if len(name) <= _SHORT else '--'}{name}": advice
    for names, advice in _ADVICE
    for name in names.split()
}
