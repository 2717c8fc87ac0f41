"""Structured output on the default model, as the OpenAI client requests it.

No schema, however bad, may disturb other requests.
"""

import re
import threading
import time
from collections.abc import Iterator
from typing import Literal

import httpx
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

pytestmark = [pytest.mark.torch, pytest.mark.model]

MODEL = "smollm2-135m-instruct"
ASKED = [{"role": "user", "content": "Describe Anna, who is 30 and likes chess."}]
SLOW = {"structured_outputs": {"regex": ".{0,50000}"}}  # compiles for seconds, or too long


class Hobby(BaseModel):
    """Something to do."""

    name: str = Field(max_length=16)
    kind: Literal["sport", "game", "craft"]


class Person(BaseModel):
    """Somebody."""

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    hobbies: list[Hobby] = Field(min_length=1, max_length=2)


@pytest.fixture(scope="module")
def client(real_server_url: str) -> Iterator[OpenAI]:
    url = f"{real_server_url}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_clients_parse_helper(client: OpenAI, temperature: float) -> None:
    def ask(**extra: object) -> openai.types.chat.ParsedChatCompletion[Person]:
        return client.chat.completions.parse(
            model=MODEL,
            messages=ASKED,  # type: ignore[arg-type]
            response_format=Person,
            temperature=temperature,
            seed=3,
            max_tokens=300,
            extra_body=extra,
        )

    drafted = ask(early_exit={"threshold": 0.2})
    assert isinstance(drafted.choices[0].message.parsed, Person)
    plain = ask(early_exit={"enabled": False})
    assert plain.choices[0].message.content == drafted.choices[0].message.content


def test_a_forced_call_streams_arguments_that_parse(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=ASKED,  # type: ignore[arg-type]
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=0,
        max_tokens=300,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert kinds.count("tool_calls.function.arguments.delta") > 5
    (call,) = final.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Person)
    assert final.choices[0].finish_reason == "tool_calls"


def test_responses_parse(client: OpenAI) -> None:
    response = client.responses.parse(
        model=MODEL, input="Anna, 30, chess", text_format=Person, max_output_tokens=300
    )
    assert isinstance(response.output_parsed, Person)


@pytest.mark.parametrize(
    ("asked", "pattern"),
    [
        ({"choice": ["yes", "no"]}, "yes|no"),
        ({"regex": "[0-9]{3}-[0-9]{4}"}, "[0-9]{3}-[0-9]{4}"),
        ({"grammar": 'root ::= [a-c] ("+" [a-c])? "."'}, r"[a-c](\+[a-c])?\."),
        ({"grammar": 'start: "a" | "b"'}, "a|b"),
    ],
)
def test_other_structures(client: OpenAI, asked: dict[str, object], pattern: str) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="1", seed=2, extra_body={"structured_outputs": asked}
    )
    assert re.fullmatch(pattern, answer.choices[0].text)
    assert answer.choices[0].finish_reason == "stop"


def test_stop_strings_end_a_structure_early_and_alike(client: OpenAI) -> None:
    def ask(**early_exit: object) -> openai.types.CompletionChoice:
        asked = {"structured_outputs": {"regex": "([a-z]{1,7} ){20}"}, "early_exit": early_exit}
        return client.completions.create(
            model=MODEL, prompt="once", seed=1, stop=["e"], max_tokens=40, extra_body=asked
        ).choices[0]

    drafted, plain = ask(threshold=0.2), ask(enabled=False)
    assert drafted.finish_reason == "stop"
    assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason)
    assert re.fullmatch("([a-z]{1,7} )*[a-z]*", drafted.text)
    assert "e" not in drafted.text


def test_others_go_on_while_a_slow_structure_compiles(client: OpenAI, real_server_url: str) -> None:
    outcomes: list[str] = []

    def ask() -> None:
        try:
            client.completions.create(model=MODEL, prompt="1", max_tokens=3, extra_body=SLOW)
            outcomes.append("compiled in time")
        except openai.BadRequestError as error:  # on a slow machine
            outcomes.append(f"{error.param}, {'longer than' in error.message}")

    asking = threading.Thread(target=ask)
    asking.start()
    longest_s, num_asked = 0.0, 0
    while asking.is_alive():
        started = time.monotonic()
        assert httpx.get(f"{real_server_url}/health").status_code == 200
        longest_s = max(longest_s, time.monotonic() - started)
        answer = client.completions.create(model=MODEL, prompt="1", max_tokens=3)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        num_asked += 1
    assert outcomes in (["compiled in time"], ["structured_outputs.regex, True"])
    assert num_asked > 2
    assert longest_s < 5
