"""Runs LangChain's ChatOpenAI against a server and prints its answers: URL MODEL."""

import json
import sys

from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"sunny in {city}"


url, model_name = sys.argv[1:]
model = ChatOpenAI(
    base_url=f"{url}/v1", api_key="none", model=model_name, temperature=0, max_tokens=12, seed=1
)
messages = [SystemMessage("Answer briefly."), HumanMessage("Name three fruits.")]
answer = model.invoke(messages)
chunks = list(model.stream(messages, stream_usage=True))
result = {
    "text": answer.content,
    "usage": dict(answer.usage_metadata or {}, input_token_details=None, output_token_details=None),
    "finish_reason": answer.response_metadata["finish_reason"],
    "streamed": "".join(chunk.content for chunk in chunks),
    "num_chunks": len(chunks),
    "batch": [each.content for each in model.batch([messages, messages])],
}
try:
    bound = model.bind_tools([get_weather]).invoke(messages)
    result["tools"] = [bound.type, [call["name"] for call in bound.tool_calls]]
except Exception as error:  # a server without tool calling refuses it by name
    result["tools_refused"] = str(getattr(error, "code", error))
print(json.dumps(result))
