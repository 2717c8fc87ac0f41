"""Runs LiteLLM against a server and prints its answers: client_litellm.py URL MODEL."""

import json
import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it asks another host
import litellm

url, model_name = sys.argv[1:]
asked = {
    "model": f"openai/{model_name}",
    "api_base": f"{url}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": "Name three fruits."}],
    "temperature": 0,
    "max_tokens": 12,
    "seed": 1,
}
answer = litellm.completion(**asked)
chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **asked))
text = litellm.text_completion(
    model=f"text-completion-openai/{model_name}",
    api_base=f"{url}/v1",
    api_key="none",
    prompt="Once upon a time",
    temperature=0,
    max_tokens=12,
)
print(
    json.dumps(
        {
            "text": answer.choices[0].message.content,
            "finish_reason": answer.choices[0].finish_reason,
            "completion_tokens": answer.usage.completion_tokens,
            "streamed": "".join(
                chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices
            ),
            "completion": text.choices[0].text,
        }
    )
)
