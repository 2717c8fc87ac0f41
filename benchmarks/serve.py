"""`adadecode bench serve`: a load test of any running server with an OpenAI-compatible API.

Names of flags and figures are those of `vllm bench serve`, so that results can be compared.
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.flags import server_address
from benchmarks.prompts import choose_prompts
from benchmarks.serve_client import Call, Outcome, send
from benchmarks.serve_figures import (
    Counters,
    draft_figures,
    format_figures,
    latency_figures,
    read_counters,
    server_figures,
    throughput_figures,
)
from benchmarks.serve_load import Load, run_load
from training.flag_types import count, output_file, positive, positive_number, temperature
from training.progress import ProgressReport

if TYPE_CHECKING:
    from httpx import AsyncClient

_PATHS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_RANDOM_TOKEN_IDS = range(100, 2000)  # every vocabulary has them, and none of them is special
_WORDS = ("rain", "bread", "train", "bee", "map", "violin", "salt", "bridge", "river", "lamp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--base-url",
        type=server_address,
        default="http://127.0.0.1:8000",
        metavar="URL",
        help="its key, if it asks for one: $OPENAI_API_KEY (%(default)s)",
    )
    parser.add_argument("--backend", choices=tuple(_PATHS), default="openai-chat")
    parser.add_argument("--model", help="name in the API (the first that the server lists)")
    parser.add_argument("--dataset-name", choices=("prompts", "random"), default="prompts")
    parser.add_argument(
        "--dataset-path", type=Path, metavar="FILE", help="JSON lines with a prompt (built in)"
    )
    parser.add_argument(
        "--random-input-len", type=positive, default=128, metavar="N", help="(%(default)s)"
    )
    parser.add_argument(
        "--output-len", type=positive, default=128, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--ignore-eos", action="store_true", help="always generate the full length")
    parser.add_argument("--temperature", type=temperature, default=0.0, help="(%(default)s)")
    parser.add_argument(
        "--extra-body", type=_json_object, default={}, metavar="JSON", help="more fields"
    )
    parser.add_argument(
        "--num-prompts", type=positive, default=100, metavar="N", help="(%(default)s)"
    )
    parser.add_argument("--num-warmups", type=count, default=1, metavar="N", help="(%(default)s)")
    parser.add_argument("--request-rate", type=_rate, default=inf, help="per second (no limit)")
    parser.add_argument(
        "--burstiness",
        type=positive_number,
        default=1.0,
        help="1: Poisson, below 1: burstier (%(default)s)",
    )
    parser.add_argument("--max-concurrency", type=positive, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--metric-percentiles",
        type=_percentiles,
        default=(50, 90, 99),
        metavar="P,P",
        help="(50,90,99)",
    )
    parser.add_argument(
        "--goodput", nargs="+", type=_objective, default=(), metavar="METRIC:MS",
        help="count requests per second that met all, e.g. ttft:200 tpot:50 e2el:3000",
    )  # fmt: skip
    parser.add_argument("--save-result", action="store_true", help="also write a JSON file")
    parser.add_argument("--result-filename", type=output_file, metavar="FILE")
    parser.add_argument(
        "--save-detailed", action="store_true", help="put every request in that file, too"
    )
    parser.add_argument("--disable-tqdm", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Carry out the parsed command; return 1 if a request has failed.

    Raises:
        ValueError: if the server cannot be reached or options make no sense.
    """
    if args.dataset_path and args.dataset_name != "prompts":
        raise ValueError("--dataset-path is for --dataset-name prompts")
    if args.save_detailed and not (args.save_result or args.result_filename):
        raise ValueError("--save-detailed needs --save-result or --result-filename")
    result, outcomes = asyncio.run(_measure(args, _prompts(args)))
    print(format_figures(result, args.metric_percentiles))
    if args.save_result or args.result_filename:
        _save(args, result, outcomes)
    failures = [each.error for each in outcomes if each.error is not None]
    if failures:
        print(f"{len(failures)} failed, the first: {failures[0]}", file=sys.stderr)
    return 1 if failures else 0


async def _measure(
    args: argparse.Namespace, prompts: Sequence[str | list[int]]
) -> tuple[dict[str, Any], list[Outcome]]:
    import httpx

    key = os.environ.get("OPENAI_API_KEY")
    async with httpx.AsyncClient(
        base_url=args.base_url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(3600, connect=10),
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
    ) as client:
        model = args.model or await _first_model(client)
        calls = _calls(args, prompts, model)
        await asyncio.gather(*(send(client, calls[0]) for _ in range(args.num_warmups)))
        before = await _counters(client)
        load = Load(
            request_rate=args.request_rate,
            burstiness=args.burstiness,
            max_concurrency=args.max_concurrency,
            seed=args.seed,
        )
        started = time.perf_counter()
        ended = itertools.count(1)
        with ProgressReport(
            "serve", len(calls), "requests", is_silent=args.disable_tqdm
        ) as progress:
            outcomes = await run_load(
                load, calls, partial(send, client), lambda: progress.update(next(ended))
            )
        duration_s = time.perf_counter() - started
        after = await _counters(client)
    completed = [each for each in outcomes if each.error is None]
    result = {
        "date": datetime.now(UTC).strftime("%Y%m%d-%H%M%S"),
        "backend": args.backend,
        "model_id": model,
        "num_prompts": len(calls),
        "request_rate": "inf" if args.request_rate == inf else args.request_rate,
        "burstiness": args.burstiness,
        "max_concurrency": args.max_concurrency,
        "failed": len(outcomes) - len(completed),
        **throughput_figures(completed, duration_s, dict(args.goodput)),
        **latency_figures(completed, args.metric_percentiles),
        **draft_figures(before, after),
        **server_figures(before, after, len(completed), duration_s),
    }
    return result, outcomes


async def _first_model(client: "AsyncClient") -> str:
    """Return the first model that the server lists.

    Raises:
        ValueError: if it lists none; says why.
    """
    import httpx

    try:
        response = await client.get("/v1/models")
        if response.is_success:
            return str(response.json()["data"][0]["id"])
        reason = f"status {response.status_code}"
        if response.status_code == httpx.codes.UNAUTHORIZED:
            reason = "it asks for a key, which is taken from the variable OPENAI_API_KEY"
    except httpx.HTTPError as error:
        reason = str(error)
    except (ValueError, LookupError, TypeError):
        reason = "it does not answer like an OpenAI server"
    raise ValueError(f"no models at {client.base_url}: {reason}")


def _prompts(args: argparse.Namespace) -> Sequence[str | list[int]]:
    """Return the prompts: texts, or token ids where the backend takes them."""
    if args.dataset_name == "prompts":
        texts = [prompt.text for prompt in choose_prompts(args.dataset_path, None)]
        return [texts[i % len(texts)] for i in range(args.num_prompts)]
    draw = random.Random(args.seed)
    lengths = [range(args.random_input_len)] * args.num_prompts
    if args.backend == "openai-chat":  # a word is about one token
        return [" ".join(draw.choice(_WORDS) for _ in length) for length in lengths]
    return [[draw.choice(_RANDOM_TOKEN_IDS) for _ in length] for length in lengths]


def _calls(args: argparse.Namespace, prompts: Sequence[str | list[int]], model: str) -> list[Call]:
    shared = {
        "model": model,
        "max_tokens": args.output_len,
        "temperature": args.temperature,
        **({"ignore_eos": True} if args.ignore_eos else {}),
        **args.extra_body,
    }

    def asked(prompt: str | list[int]) -> dict[str, Any]:
        if args.backend == "openai-chat":
            return {"messages": [{"role": "user", "content": prompt}]}
        return {"prompt": prompt}

    return [Call(path=_PATHS[args.backend], body={**shared, **asked(prompt)}) for prompt in prompts]


async def _counters(client: "AsyncClient") -> Counters:
    """Return the server's counters; none if it has no metrics, or is gone."""
    import httpx

    try:
        response = await client.get("/metrics")
    except httpx.HTTPError:
        return {}
    return read_counters(response.text) if response.status_code == 200 else {}


def _save(args: argparse.Namespace, result: dict[str, Any], outcomes: list[Outcome]) -> None:
    if args.save_detailed:
        result |= {
            "input_lens": [each.num_input_tokens for each in outcomes],
            "output_lens": [each.num_output_tokens for each in outcomes],
            "ttfts": [each.ttft_s for each in outcomes],
            "itls": [each.itls_s for each in outcomes],
            "generated_texts": [each.text for each in outcomes],
            "errors": [each.error or "" for each in outcomes],
        }
    name = f"{args.backend}-{result['request_rate']}qps-{result['date']}.json"
    path = args.result_filename or Path(name)
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written: {path}")


def _percentiles(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = (nan,)
    if not all(0 <= number <= 100 for number in numbers):
        raise argparse.ArgumentTypeError("should be numbers from 0 to 100, such as 50,99")
    return numbers


def _rate(text: str) -> float:
    return inf if text == "inf" else positive_number(text)


def _json_object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"is no JSON: {error}") from None
    if not isinstance(fields, dict):
        raise argparse.ArgumentTypeError('should be a JSON object such as {"top_p": 0.9}')
    return fields


def _objective(text: str) -> tuple[str, float]:
    metric, colon, most = text.partition(":")
    if metric not in ("ttft", "tpot", "e2el") or not colon:
        raise argparse.ArgumentTypeError("should be ttft:MS, tpot:MS or e2el:MS")
    return metric, positive_number(most)
