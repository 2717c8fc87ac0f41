"""Bad requests by row of the acceptance table: the refusal, and that nothing was disturbed."""

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import MODEL, fake_app, serving

JSON = {"content-type": "application/json"}
HEAD = f'{{"model": "{MODEL}", "prompt": "a", '
ROWS = {  # row: (status, bodies); every row that is not here is skipped by name
    1: (400, [b"", b'{"model": ', b"{} x"]),
    2: (400, [HEAD + '"temperature": NaN}', HEAD + '"top_p": 1e400}']),
    5: (400, [HEAD + '"n": "3"}', HEAD + '"n": true}', HEAD + '"n": 1000000000000000000}']),
    6: (400, ["[1]", "null", '"x"']),
    15: (404, ['{"model": "nobody", "prompt": "a"}']),
    16: (400, [HEAD + '"n": 0}', HEAD + '"n": -1}', HEAD + '"n": 1000000}']),
    17: (400, [HEAD + '"temperature": -0.1}', HEAD + '"temperature": "hot"}']),
    18: (400, [HEAD + '"top_p": 0}', HEAD + '"top_p": 1.1}', HEAD + '"min_p": 2}']),
    19: (400, [HEAD + '"presence_penalty": 2.01}', HEAD + '"repetition_penalty": 0}']),
    24: (400, [f'{{"model": "{MODEL}", "prompt": []}}']),
    23: (400, [f'{{"model": "{MODEL}", "prompt": [{ids}]}}' for ids in ("-1", "260", '1, "a"')]),
    26: (400, [HEAD + '"stop": ["a", "b", "c", "d", "e"]}', HEAD + '"stop": 5}']),
    27: (400, [HEAD + '"logit_bias": {"abc": 1}}', HEAD + '"logit_bias": {"1": 101}}']),
    29: (400, [HEAD + '"seed": 1.5}', HEAD + '"seed": 18446744073709551616}']),
    30: (400, [HEAD + '"stream": "yes"}']),
}


@pytest.mark.parametrize("row", range(1, 71))
def test_row(row: int) -> None:
    if row not in ROWS:
        pytest.skip(f"row {row} has no run in this table yet")
    status, bodies = ROWS[row]
    engine = FakeEngine()
    with serving(fake_app(engine)) as url, httpx.Client(base_url=url) as client:
        canary = {"model": MODEL, "prompt": "canary", "temperature": 0, "max_tokens": 12}
        before = client.post("/v1/completions", json=canary).json()["choices"]
        for body in bodies:
            answer = client.post("/v1/completions", content=body, headers=JSON)
            assert answer.status_code == status, body
            assert answer.json()["error"]["message"]
            assert "Traceback" not in answer.text
            assert ".py" not in answer.text
        assert len(engine.requests) == 1  # nothing refused reached the engine
        assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json=canary).json()["choices"] == before
