import argparse
import io

import pytest
from scripted_server import DONE, delta

from server import chat


def run(*flags):
    parser = argparse.ArgumentParser()
    chat.add_arguments(parser)
    return chat.run(parser.parse_args(flags))


@pytest.fixture
def pipe(monkeypatch):
    """Feed standard input as a pipe would."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.mark.parametrize("flag", ["--base-url", "--url"])
def test_a_pipe_gets_one_answer_a_line(script, pipe, capsys, flag):
    script.answers = [[delta("one"), DONE], [delta("two"), DONE]]
    pipe("first\n\nsecond\n")

    assert run(flag, script.url) == 0

    assert capsys.readouterr().out == "one\ntwo\n"
    assert script.bodies[0]["model"] == "scripted"


def test_the_key_comes_from_the_environment(script, pipe, monkeypatch):
    monkeypatch.setenv("ADADECODE_API_KEY", "first,second")
    script.answers = [[DONE]]
    pipe("hi\n")

    run("--base-url", f"{script.url}/v1", "--model", "m")

    assert script.keys == ["Bearer first"]


@pytest.mark.parametrize(("flags", "temperature"), [((), 0.2), (("--temperature", "1"), 1.0)])
def test_answers_do_not_ramble_unless_asked_to(script, pipe, flags, temperature):
    script.answers = [[DONE]]
    pipe("hi\n")

    assert run("--base-url", script.url, *flags) == 0

    assert script.bodies[0]["temperature"] == temperature


@pytest.mark.parametrize(("flags", "temperature"), [((), None), (("--temperature", "1"), 1.0)])
def test_a_model_with_a_temperature_of_its_own_is_asked_at_that_one(
    script, pipe, flags, temperature
):
    script.card = {"sampling_defaults": {"temperature": 0.6}}
    script.answers = [[DONE]]
    pipe("hi\n")

    assert run("--url", script.url, *flags) == 0

    assert script.bodies[0].get("temperature") == temperature


@pytest.mark.parametrize("text", ["nan", "inf", "warm"])
def test_a_temperature_is_a_number(text, capsys):
    with pytest.raises(SystemExit):
        run("--temperature", text)
    assert f"--temperature: '{text}' should be a number" in capsys.readouterr().err


def test_an_error_in_a_pipe_ends_it_with_a_status(script, pipe, capsys):
    script.error = (503, "busy")
    pipe("hi\n")

    assert run("--base-url", script.url) == 1
    assert capsys.readouterr().err == "error: 503: busy\n"


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://host:port", "Invalid port: 'port'"),
        ("localhost:8000", "it should begin with http:// or https://"),
        ("127.0.0.1/v1", "it should begin with http:// or https://"),
    ],
)
def test_an_address_that_is_none_is_one_line(pipe, capsys, url, reason):
    pipe("")

    assert run("--base-url", url) == 1
    assert capsys.readouterr().err == f"error: {url} is no address: {reason}\n"


def test_a_key_may_be_anything(script, pipe):
    script.answers = [[DONE]]
    pipe("hi\n")

    assert run("--base-url", script.url, "--api-key", "schlüssel", "--model", "m") == 0

    assert [key.encode("latin-1").decode() for key in script.keys] == ["Bearer schlüssel"]


def test_no_server(pipe, capsys):
    pipe("")

    assert run("--base-url", "http://127.0.0.1:1") == 1
    assert "no server at http://127.0.0.1:1" in capsys.readouterr().err
