import argparse
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fake_engine import FakeEngine

import server.chat
from server.cli import main
from server.http_server import listen
from server.sampling_defaults import SamplingDefaults
from server.settings import ServerSettings
from server.summary import start_up_summary

HEADS = Path(server.chat.__file__).parents[2] / "configs" / "heads" / "smollm2-135m-instruct"


def test_a_model_that_cannot_be_served_is_one_line_and_status_1(tmp_path, capsys):
    status = main(["serve", str(tmp_path), "--port", "0", "--shutdown-timeout", "0"])

    error = capsys.readouterr().err
    assert status == 1
    assert str(tmp_path) in error.splitlines()[-1]
    assert "Traceback" not in error


def test_a_model_whose_sampling_values_cannot_be_used_is_refused_before_it_is_loaded(
    tmp_path, capsys
):
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "generation_config.json").write_text('{"temperature": 3}')
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("")

    assert main(["serve", str(tmp_path), "--port", "0"]) == 1

    error = capsys.readouterr().err
    assert "generation_config.json: temperature: input should be less than or equal" in error
    assert "--generation-config none serves with OpenAI's defaults" in error
    assert "Traceback" not in error


def test_the_address_is_kept_in_a_file_while_the_server_runs(tmp_path, monkeypatch):
    file = tmp_path / "address"
    seen = []

    async def serve(settings, url, *_):
        seen.append((url, file.read_text()))
        return 0

    monkeypatch.setattr("server.serve._serve", serve)

    assert main(["serve", "--port", "0", "--address-file", str(file)]) == 0
    ((url, kept),) = seen
    assert kept == f"{url}\n"
    assert not kept.startswith("http://127.0.0.1:0\n")
    assert not file.exists()


def test_an_address_that_cannot_be_kept_is_no_reason_not_to_serve(tmp_path, monkeypatch, caplog):
    async def serve(*_):
        return 0

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("server.serve._serve", serve)
    monkeypatch.setattr("pathlib.Path.write_text", refuse)

    assert main(["serve", "--port", "0", "--address-file", str(tmp_path / "a")]) == 0
    assert "cannot be written: Read-only file system" in caplog.text


def test_a_port_in_use_is_one_line_and_status_1(capsys):
    with listen("127.0.0.1", 0) as taken:
        status = main(["serve", "--port", str(taken.getsockname()[1])])

    assert status == 1
    assert "is in use; choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "heads", "line"),
    [
        ({}, "configs/heads", "at layer 2 of 4, up to 3 drafts, heads configs/heads"),
        ({}, None, "none: no exit heads"),
        ({"early_exit": False}, None, "exits    off (--no-early-exit)\n"),
        ({"early_exit": False, "heads": HEADS}, None, "off (--no-early-exit), --heads unused\n"),
    ],
)
def test_the_summary_says_what_is_served(flags, heads, line):
    summary = start_up_summary(
        ServerSettings(**flags),
        FakeEngine().info,
        heads,
        "http://127.0.0.1:8000",
        SamplingDefaults(),
    )

    assert line in summary
    assert "4 layers, float32 on cpu, fake kernels, context 256 tokens" in summary
    assert "1,024 tokens in blocks of 16: 4.0 requests of full length" in summary
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in summary


def test_an_exit_before_the_first_layer_is_explained():
    info = replace(FakeEngine().info, exit_layers=(0, 2))
    summary = start_up_summary(ServerSettings(), info, Path("h"), "http://x", SamplingDefaults())

    assert "at layer 0 (before the first), 2 of 4" in summary


def test_the_summary_names_the_page_unless_it_is_off():
    pages = [
        "chat in a browser"
        in start_up_summary(
            ServerSettings(ui=ui), FakeEngine().info, None, "http://x", SamplingDefaults()
        )
        for ui in (True, False)
    ]

    assert pages == [True, False]


def test_what_newcomers_meet_first_asks_for_one_temperature():
    summary = start_up_summary(
        ServerSettings(), FakeEngine().info, None, "http://x", SamplingDefaults()
    )
    chat = argparse.ArgumentParser()
    server.chat.add_arguments(chat)
    page = (Path(server.chat.__file__).parents[1] / "ui" / "index.html").read_text("utf-8")
    asked = [
        *re.findall(r'"temperature": ([\d.]+)', summary),
        *re.findall(r"else ([\d.]+), as on the page", " ".join(chat.format_help().split())),
        *re.findall(r'id="temperature"[^>]* value="([\d.]+)"', page),
    ]

    assert asked == ["0.2", "0.2", "0.2"]


def test_the_summary_says_which_defaults_are_not_openais():
    usual, changed = (
        start_up_summary(ServerSettings(), FakeEngine().info, None, "http://x", defaults)
        for defaults in (SamplingDefaults(), SamplingDefaults(temperature=0.6, max_new_tokens=9))
    )

    assert "defaults" not in usual
    assert "defaults temperature 0.6, max_new_tokens 9, where a request does not say" in changed
    assert '"temperature": 0.2' in usual, "the request to try does not ramble"
    assert '"temperature"' not in changed, "the request to try has the model's own temperature"
