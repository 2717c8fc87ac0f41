"""`bench prefix` against a server around a fake engine, and on a fake engine itself."""

import json
import time
from dataclasses import replace

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

from benchmarks.prefix import Answer, Pair, ask_engine
from server.cli import main


@pytest.mark.parametrize(("target", "status"), [("1000", 0), ("0", 1)])
def test_every_prompt_is_asked_twice_and_held_against_the_target(tmp_path, capsys, target, status):
    engine, file = FakeEngine(), tmp_path / "pairs.json"
    engine.info = replace(engine.info, vocab_size=2000)
    with serving(fake_app(engine)) as url:
        flags = ["--ways", "http", "--base-url", url, "--num-prompts", "3", "--input-len", "100"]
        made = main(["bench", "prefix", *flags, "--target", target, "--json", str(file)])

    assert made == status
    prompts = [request.prompt_token_ids for request in engine.requests]
    assert prompts[1::2] == prompts[2::2]
    assert len(set(prompts)) == 4  # three prompts and the warm-up
    pairs = json.loads(file.read_text())
    assert all(pair[side]["ttft_s"] > 0 for pair in pairs for side in ("first", "again"))
    assert "answers that differ: 0" in capsys.readouterr().out


async def test_an_engine_is_timed_to_its_first_token():
    started_s = time.perf_counter()
    answer = await ask_engine(FakeEngine(token_delay_s=0.02), [1, 2, 3])  # type: ignore[arg-type]

    whole_s = time.perf_counter() - started_s
    assert 0.015 < answer.ttft_s < whole_s - 7 * 0.015, "seven more came after it"
    assert answer.said == str(list(b"Hello wo"))


def test_a_pairs_ratio():
    first, again = (Answer(ttft_s=t, num_cached_tokens=0, said="") for t in (2.0, 0.5))

    assert Pair(way="http", first=first, again=again).ratio == 0.25
