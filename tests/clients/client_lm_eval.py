"""Runs lm-eval's local-completions against a server: URL MODEL TOKENIZER TASK_DIR TASK.

It prints the task's results. TASK_DIR contains the task and its data, so nothing is downloaded.
"""

import json
import os
import sys

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
import lm_eval
from lm_eval.tasks import TaskManager

url, model_name, tokenizer, directory, task = sys.argv[1:]
outcome = lm_eval.simple_evaluate(
    model="local-completions",
    model_args={
        "model": model_name,
        "base_url": f"{url}/v1/completions",
        "tokenizer": tokenizer,
        "num_concurrent": 2,
        "max_retries": 1,
    },
    tasks=[task],
    task_manager=TaskManager(include_path=directory, include_defaults=False),
    bootstrap_iters=0,
    log_samples=True,
)
samples = [sample["filtered_resps"] for sample in outcome["samples"][task]]
print(json.dumps({"results": outcome["results"][task], "samples": samples}))
