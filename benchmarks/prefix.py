"""`adadecode bench prefix`: time to the first token of a long prompt, new and repeated.

Every prompt is random and sent twice, one request at a time, to an engine in this process and over
HTTP. The second time its blocks are found in the prefix cache. The exit status is 1 if the median
ratio of the two times is above the target, or an answer differs.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, TypeAlias

from benchmarks.flags import server_address
from benchmarks.own_server import add_server_flags, ready_server
from benchmarks.serve_client import Call, send
from engine.async_engine import AsyncEngine
from engine.checkpoint import find_heads, resolve_model
from engine.config import EngineConfig, ExitsConfig, ModelConfig
from engine.inline_worker import inline_model_worker
from engine.request import GenerationRequest, SamplingParams
from engine.tokenizer import load_tokenizer
from training.progress import ProgressReport

if TYPE_CHECKING:
    from httpx import AsyncClient

WAYS = ("engine", "http")
_TOKEN_IDS = range(100, 2000)  # every vocabulary has them, and none of them is special
_NUM_OUTPUT_TOKENS = 8  # enough for a first piece of text
_NUM_WARMUP_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The answer to one request."""

    ttft_s: float
    num_cached_tokens: int
    said: str  # the text, or the token ids as a string


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Both answers to one prompt."""

    way: str
    first: Answer
    again: Answer

    @property
    def ratio(self) -> float:
        """Time to the first token of the repeated prompt over the new one's."""
        return self.again.ttft_s / self.first.ttft_s


Ask: TypeAlias = Callable[[Sequence[int]], Awaitable[Answer]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("model", metavar="MODEL", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--num-prompts", type=int, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--input-len", type=int, default=2048, metavar="N", help="(%(default)s)")
    parser.add_argument(
        "--target",
        type=float,
        default=0.2,
        metavar="R",
        help="highest median ratio of the two times (%(default)s)",
    )
    parser.add_argument("--ways", type=_ways, default=WAYS, metavar="W,W", help="(engine,http)")
    parser.add_argument("--base-url", type=server_address, help="a running server (one of its own)")
    parser.add_argument("--seed", type=int, default=0)
    add_server_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command and return the exit status.

    Raises:
        ValueError: if the numbers make no sense or a request has failed.
    """
    if args.num_prompts < 1 or args.input_len < 1:
        raise ValueError("--num-prompts and --input-len should be positive")
    draw = random.Random(args.seed)
    pairs: list[Pair] = []
    for way in args.ways:
        prompts = [_prompt(draw, args.input_len) for _ in range(args.num_prompts)]
        warmup = _prompt(draw, min(_NUM_WARMUP_TOKENS, args.input_len))
        pairs += asyncio.run(_measure(args, way, warmup, prompts))
    print(_format(pairs, args))
    if args.json:
        args.json.write_text(json.dumps([asdict(pair) for pair in pairs], indent=1) + "\n")
    is_met = all(_median_ratio(pairs, way) <= args.target for way in args.ways)
    return 0 if is_met and all(pair.first.said == pair.again.said for pair in pairs) else 1


async def ask_engine(engine: AsyncEngine, prompt: Sequence[int]) -> Answer:
    """Send one greedy request to a running engine."""
    sampling = SamplingParams(temperature=0.0, max_tokens=_NUM_OUTPUT_TOKENS, ignore_eos=True)
    request = GenerationRequest(
        request_id=f"prefix-{time.monotonic_ns()}",
        prompt_token_ids=tuple(prompt),
        sampling=sampling,
    )
    token_ids: list[int] = []
    started_s, ttft_s, num_cached_tokens = time.perf_counter(), 0.0, 0
    async with aclosing(engine.generate(request)) as outputs:
        async for output in outputs:
            if output.token_ids and not token_ids:
                ttft_s = time.perf_counter() - started_s
            token_ids += output.token_ids
            num_cached_tokens = output.num_cached_tokens
    return Answer(ttft_s=ttft_s, num_cached_tokens=num_cached_tokens, said=str(token_ids))


async def ask_server(client: "AsyncClient", model: str, prompt: Sequence[int]) -> Answer:
    """Send the same request over HTTP.

    Raises:
        ValueError: if it fails.
    """
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": _NUM_OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    outcome = await send(client, Call(path="/v1/completions", body=body))
    if outcome.error is not None or not outcome.text:
        raise ValueError(outcome.error or "the server sent no text")
    return Answer(
        ttft_s=outcome.ttft_s, num_cached_tokens=outcome.num_cached_tokens, said=outcome.text
    )


async def _measure(
    args: argparse.Namespace, way: str, warmup: list[int], prompts: Sequence[list[int]]
) -> list[Pair]:
    pairs = []
    async with _engine(args) if way == "engine" else _server(args) as ask:
        await ask(warmup)
        with ProgressReport(f"prefix, {way}", len(prompts), "prompts") as progress:
            for prompt in prompts:
                first, again = await ask(prompt), await ask(prompt)
                pairs.append(Pair(way=way, first=first, again=again))
                progress.update(len(pairs))
    return pairs


@asynccontextmanager
async def _engine(args: argparse.Namespace) -> AsyncIterator[Ask]:
    """Run the engine with the defaults of `adadecode serve`, but its worker in this process."""
    directory = resolve_model(args.model)
    config = EngineConfig(
        model=ModelConfig(directory=directory),
        exits=ExitsConfig(heads=find_heads(args.model, directory)),
        worker="inline",
    )
    engine = AsyncEngine(config, inline_model_worker(config), load_tokenizer(directory))
    await engine.start()
    try:
        yield partial(ask_engine, engine)
    finally:
        await engine.stop()


@asynccontextmanager
async def _server(args: argparse.Namespace) -> AsyncIterator[Ask]:
    import httpx

    if args.base_url is None:
        async with ready_server([args.model, *args.serve_flag]) as (_, client):
            yield await _asker(client)
        return
    async with httpx.AsyncClient(base_url=args.base_url, timeout=3600) as client:
        yield await _asker(client)


async def _asker(client: "AsyncClient") -> Ask:
    model = (await client.get("/v1/models")).json()["data"][0]["id"]
    return partial(ask_server, client, model)


def _prompt(draw: random.Random, length: int) -> list[int]:
    return [draw.choice(_TOKEN_IDS) for _ in range(length)]


def _median_ratio(pairs: Sequence[Pair], way: str) -> float:
    return median(pair.ratio for pair in pairs if pair.way == way)


def _format(pairs: Sequence[Pair], args: argparse.Namespace) -> str:
    lines = [f"{args.num_prompts} prompts of {args.input_len} tokens, each asked twice; medians"]
    lines.append("way     first token   repeated   ratio   of the prompt cached")
    for way in args.ways:
        mine = [pair for pair in pairs if pair.way == way]
        first, again = (
            1e3 * median(answer.ttft_s for answer in answers)
            for answers in zip(*((pair.first, pair.again) for pair in mine), strict=True)
        )
        cached = median(pair.again.num_cached_tokens for pair in mine)
        lines.append(
            f"{way:<6} {first:>9.1f} ms {again:>7.1f} ms {_median_ratio(pairs, way):>7.3f}"
            f"   {cached:g} of {args.input_len}"
        )
    num_changed = sum(pair.first.said != pair.again.said for pair in pairs)
    lines.append(f"answers that differ: {num_changed}; target: a ratio of {args.target:g} or less")
    return "\n".join(lines)


def _ways(text: str) -> tuple[str, ...]:
    ways = tuple(text.split(","))
    for way in ways:
        if way not in WAYS:
            raise argparse.ArgumentTypeError(f"unknown way {way!r}: {', '.join(WAYS)}")
    return ways
