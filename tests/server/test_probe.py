"""The container's health check, against servers that listen on whatever address."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

from server.probe import main
from server.settings import ServerSettings
from server.tls import tls_context

ROOT = Path(__file__).parents[2]


@pytest.fixture
def announce(tmp_path, monkeypatch):
    """Keep an address where the check looks for it."""
    monkeypatch.setenv("ADADECODE_ADDRESS_FILE", str(tmp_path / "address"))
    return lambda url: (tmp_path / "address").write_text(f"{url}\n")


def test_whatever_the_port(announce, live_url, monkeypatch):
    announce(live_url)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # docker hands its proxies on

    assert main("/health") == main("/ready") == 0


def test_https_whatever_the_certificate(announce, tmp_path):
    both = tmp_path / "both.pem"
    make = f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout {both}"
    made = subprocess.run(make.split(), check=True, capture_output=True).stdout
    both.write_bytes(both.read_bytes() + made)
    with serving(fake_app(FakeEngine()), tls_context(ServerSettings(ssl_certfile=both))) as url:
        announce(url)

        assert main("/health") == 0


def test_a_server_that_is_not_ready_is_alive(announce, engine, live_url):
    announce(live_url)
    engine.is_recovering = True

    assert (main("/health"), main("/ready")) == (0, 1)


def test_nobody_there(announce, capsys):
    announce("http://127.0.0.1:9")

    assert main("/health") == 1
    assert capsys.readouterr().out.startswith("http://127.0.0.1:9/health: ")


@pytest.mark.parametrize(
    ("given", "port"), [("1", 1), ("", 8000), ("tcp://10.43.7.9:80", 8000), (None, 8000)]
)
def test_without_a_file_the_variable_tells_the_port(monkeypatch, capsys, given, port):
    monkeypatch.setattr("server.probe._status", lambda url, path: 200)
    monkeypatch.delenv("ADADECODE_ADDRESS_FILE", raising=False)
    if given is not None:
        monkeypatch.setenv("ADADECODE_PORT", given)

    assert main("/health") == 0
    assert f":{port}/health: status 200" in capsys.readouterr().out


def test_the_image_and_compose_run_it(announce, live_url):
    announce(live_url)
    checks = [
        line.partition("CMD")[2]
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("HEALTHCHECK")
    ]
    assert checks == [' ["python", "-m", "server.probe", "/health"]']
    assert (
        '["CMD", "python", "-m", "server.probe", "/ready"]'
        in (ROOT / "docker-compose.yml").read_text()
    )
    command = [sys.executable, "-m", "server.probe", "/ready"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
