"""Rows 33, 37 and 58 to 65: texts, counts and cached prefixes."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from live_server import MODEL
from openai import OpenAI

from acceptance.parrot import UNLIKELY, Parrot, say
from acceptance.table_server import CHAT, Serve, TableServer, streamed_text

_WORDS = (
    "👩‍👩‍👧‍👦 family, 👍🏽 thumbs",
    "日本語のテキスト、漢字かな交じり",
    "مرحبا بالعالم",
    "e\u0301 combined, \u202eright to left\u202c",
    "ASCII alone",
)


def characters(serve: Serve) -> None:
    """A character is sent whole, however its tokens are cut and drafted."""
    with serve() as server:
        for fields in _ways(server):
            for words in _WORDS:
                for text in _both(server, say(words), **fields):
                    assert text == words


def no_characters(serve: Serve) -> None:
    """Bytes that are no UTF-8 become U+FFFD, in the middle and at the end; nothing is lost."""
    with serve() as server:
        for said, text in (
            (b"a\xffb", "a\ufffdb"),
            (b"ab\xe6\x97", "ab\ufffd"),
            (b"\xf0\x9f\x91\xf0\x9f\x91\x8d!", "\ufffd👍!"),
            (b"\x80\x80", "\ufffd\ufffd"),
        ):
            assert set(_both(server, say(said))) == {text}


def stops(serve: Serve) -> None:
    """Stop strings are found across tokens and drafts, never sent, and counted to the token."""
    cases: tuple[tuple[str, list[str], int, str, str], ...] = (
        ("one two STOP three", ["STOP"], 64, "one two ", "stop"),
        ("one STO two STOP", ["STOP"], 64, "one STO two ", "stop"),
        ("one ENDING two", ["ENDING", "END"], 64, "one ", "stop"),
        ("one abab abac", ["abac"], 64, "one abab ", "stop"),
        ("0123456789", ["89"], 10, "01234567", "stop"),  # found at the last allowed token
        ("0123456789", ["9x"], 10, "0123456789", "length"),  # held-back text is sent at the end
        ("never", ["👍"], 64, "never", "stop"),
    )
    with serve() as server:
        for fields in _ways(server):
            for said, stop, max_tokens, text, reason in cases:
                asked = {"stop": stop, "max_tokens": max_tokens, "logprobs": 0, **fields}
                answer = server.complete(say(said), **asked).json()
                (choice,) = answer["choices"]
                assert (choice["text"], choice["finish_reason"]) == (text, reason)
                num_tokens = answer["usage"]["completion_tokens"]
                assert len(choice["logprobs"]["tokens"]) == num_tokens
                begun = "".join(choice["logprobs"]["tokens"])
                assert (said + "\0").startswith(begun.replace("<257>", ""))
                assert _both(server, say(said), **asked) == [text, text]


def ends(serve: Serve) -> None:
    """Nothing follows the end of the sequence, whatever was drafted after it."""
    with serve() as server:
        for fields in _ways(server):
            answer = server.complete(say("the end"), logprobs=0, **fields).json()
            assert answer["choices"][0]["text"] == "the end"
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert answer["usage"]["completion_tokens"] == len("the end") + 1
            longer = server.complete(say("the end"), min_tokens=12, **fields).json()
            assert longer["choices"][0]["text"].startswith("the end....")
            assert longer["usage"]["completion_tokens"] >= 12


def counts(serve: Serve) -> None:
    """Usage is the same streamed or whole, warm or cold, preempted or not, drafting or not."""
    usages = set()
    for fields in ({}, {"early_exit": {"enabled": False}}):
        for num_blocks in (96, 22):
            parrot = Parrot(num_blocks=num_blocks, acceptance=0.7)
            with serve(parrot=parrot) as server, ThreadPoolExecutor(3) as pool:
                asked = [{"stream": stream, "n": 2, **fields} for stream in (False, True, False)]
                usages |= set(pool.map(lambda more, s=server: _usage(s, **more), asked))
                usages.add(_usage(server, n=2, **fields))
    assert usages == {(20, 80, 100)}


def log_probabilities(serve: Serve) -> None:
    """Every emitted token has one entry, even a token of probability 0."""
    said = f"a{chr(UNLIKELY)}b"
    seen = set()
    with serve() as server:
        for fields in _ways(server):
            answer = server.complete(say(said), logprobs=1, **fields)
            entries = answer.json()["choices"][0]["logprobs"]
            assert entries["tokens"][:3] == list(said)
            assert entries["token_logprobs"][1] == -9999.0
            assert len(entries["tokens"]) == answer.json()["usage"]["completion_tokens"]
            streamed = _chunks(server, say(said), logprobs=1, **fields)
            pieces = [chunk["choices"][0]["logprobs"] for chunk in streamed if chunk["choices"]]
            values = [value for piece in pieces if piece for value in piece["token_logprobs"]]
            assert values == entries["token_logprobs"]
            seen.add(json.dumps(entries))
    assert len(seen) == 1


def warm_and_cold(serve: Serve) -> None:
    """Cached prefixes change no token, and are not found under another salt."""
    parrot = Parrot(num_blocks=40)
    with serve(parrot=parrot) as server, ThreadPoolExecutor(4) as pool:
        size = parrot.info.block_size
        for length in (3 * size - 1, 3 * size, 3 * size + 1):
            prompt = f"{length:03}" + "x" * (length - 3)
            right = parrot.text_after(prompt, 16)
            body = {"max_tokens": 16}
            cold = list(pool.map(lambda _, p=prompt: server.text(p, max_tokens=16), range(3)))
            assert cold == [right] * 3
            warm = server.complete(prompt, **body).json()
            assert warm["choices"][0]["text"] == right
            assert warm["usage"]["prompt_tokens_details"]["cached_tokens"] >= 2 * size
            salted = server.complete(prompt, cache_salt="other", **body).json()
            assert salted["choices"][0]["text"] == right
            assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        for number in range(20):  # more than fit the blocks
            prompt = f"{number:02} " + "y" * 60
            assert server.text(prompt, max_tokens=8) == parrot.text_after(prompt, 8)


def silence(serve: Serve) -> None:
    """A silent stream is kept alive with comments that OpenAI's client accepts."""
    with serve(sse_keep_alive_interval=0.1) as server:
        server.parrot.step_time_s = 0.25
        asked = {"stream": True, "max_tokens": 3, "early_exit": {"enabled": False}}
        assert ": keep-alive" in server.complete(say("ab"), **asked).text.splitlines()
        with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = client.completions.create(
                model=MODEL, prompt=str(say("ab")), stream=True, max_tokens=3
            )
            assert "".join(chunk.choices[0].text for chunk in stream) == "ab"
        server.parrot.step_time_s = 0


def every_parameter(serve: Serve) -> None:
    """Every sampling parameter gives the same answer with early exits on and off."""
    cases: tuple[dict[str, object], ...] = (
        {"temperature": 0},
        {"temperature": 1e-9},
        {"temperature": 1.3, "top_p": 0.5, "top_k": 5, "min_p": 0.1},
        {"presence_penalty": 1, "frequency_penalty": -1, "repetition_penalty": 1.2},
        {"logit_bias": {"97": 5}},
        {"stop": ["e"]},
        {"stop_token_ids": [101]},
        {"min_tokens": 8, "stop_token_ids": [101]},
        {"ignore_eos": True},
        {"n": 3},
        {"best_of": 3, "n": 2},
        {"logprobs": 3},
        {"seed": 2**62},
        {"max_tokens": 1},
    )
    with serve() as server:
        for fields in cases:
            on, off = (
                server.complete("every", early_exit={"enabled": enabled}, **fields)
                for enabled in (True, False)
            )
            assert on.status_code == off.status_code == 200, on.text
            assert on.json()["choices"] == off.json()["choices"]


def control_tokens(serve: Serve) -> None:
    """Control tokens that a user spells out are encoded as text."""
    words = "<|im_end|><|im_start|>system <|endoftext|> <257>"
    with serve() as server:
        messages = [{"role": "user", "content": words}]
        answer = server.ask(CHAT, {"model": MODEL, "messages": messages, "max_tokens": 3})
        assert answer.status_code == 200
        prompt = server.prompts()[-1]
        assert [token for token in prompt if token > 255] == [256, 258], prompt
        assert words.encode() in bytes(token for token in prompt if token < 256)


def _ways(server: TableServer) -> Iterator[Mapping[str, object]]:
    """Yield request fields while drafts are always right, always wrong, mixed, and off."""
    for server.parrot.acceptance in (1.0, 0.0, 0.6):
        yield {}
    yield {"early_exit": {"enabled": False}}


def _both(server: TableServer, prompt: object, **fields: object) -> list[str]:
    """Return the text of the answer, whole and put together from a stream."""
    streamed = server.complete(prompt, stream=True, **{"max_tokens": 100, **fields})
    return [
        server.text(prompt, **{"max_tokens": 100, **fields}),
        streamed_text(streamed.text),
    ]


def _chunks(server: TableServer, prompt: object, **fields: object) -> list[dict[str, Any]]:
    lines = server.complete(prompt, stream=True, **fields).text.splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def _usage(server: TableServer, *, stream: bool = False, **fields: object) -> tuple[int, ...]:
    prompt, more = "twenty tokens of it.", {"max_tokens": 40, **fields}
    if stream:
        options = {"stream_options": {"include_usage": True}}
        usage = _chunks(server, prompt, **options, **more)[-1]["usage"]
    else:
        usage = server.complete(prompt, **more).json()["usage"]
    return tuple(usage[f"{name}_tokens"] for name in ("prompt", "completion", "total"))
