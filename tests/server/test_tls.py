"""HTTPS with freshly made certificates."""

import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving

from server.cli import main
from server.settings import ServerSettings
from server.tls import TlsError, tls_context


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a directory with cert.pem, key.pem, both.pem, and another key."""
    path = tmp_path_factory.mktemp("tls")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    names = "-addext subjectAltName=IP:127.0.0.1"
    for stem in ("", "other-"):
        out = f"-keyout {path}/{stem}key.pem -out {path}/{stem}cert.pem"
        subprocess.run(f"{make} {names} {out}".split(), check=True, capture_output=True)
    both = (path / "cert.pem").read_text() + (path / "key.pem").read_text()
    (path / "both.pem").write_text(both)
    return path


def settings(directory: Path, **given: object) -> ServerSettings:
    named = {
        name: directory / value if isinstance(value, str) else value
        for name, value in given.items()
    }
    return ServerSettings.model_validate(named)


@pytest.mark.parametrize(
    "files",
    [{"ssl_certfile": "cert.pem", "ssl_keyfile": "key.pem"}, {"ssl_certfile": "both.pem"}],
)
def test_a_certificate_makes_it_https(directory, files):
    trusting = ssl.create_default_context(cafile=directory / "cert.pem")
    tls = tls_context(settings(directory, **files))
    with serving(fake_app(FakeEngine()), tls=tls) as url:
        assert url.startswith("https://")
        assert httpx.get(f"{url}/health", verify=trusting).json() == {"status": "ok"}
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{url}/health")


def test_a_clients_certificate_can_be_required(directory):
    trusting = ssl.create_default_context(cafile=directory / "cert.pem")
    tls = tls_context(
        settings(directory, ssl_certfile="both.pem", ssl_ca_certs="cert.pem", ssl_cert_reqs=2)
    )
    with serving(fake_app(FakeEngine()), tls=tls) as url:
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/health", verify=trusting)
        trusting.load_cert_chain(directory / "both.pem")
        assert httpx.get(f"{url}/health", verify=trusting).status_code == 200


def test_without_a_certificate_there_is_no_tls():
    assert tls_context(ServerSettings()) is None


@pytest.mark.parametrize(
    "files",
    [
        {"ssl_certfile": "cert.pem"},
        {"ssl_certfile": "cert.pem", "ssl_keyfile": "other-key.pem"},
        {"ssl_certfile": "key.pem"},
        {"ssl_certfile": "both.pem", "ssl_ca_certs": "key.pem"},
    ],
)
def test_certificates_that_do_not_fit_are_said_so(directory, files):
    with pytest.raises(TlsError, match="--ssl-"):
        tls_context(settings(directory, **files))


def test_the_server_says_so_in_one_line(directory, capsys):
    status = main(["serve", "--port", "0", "--ssl-certfile", str(directory / "cert.pem")])

    error = capsys.readouterr().err
    assert status == 1
    assert error.startswith("adadecode serve: --ssl-certfile")
    assert "a certificate in PEM form is needed, with its key" in error
    assert error.count("\n") == 1
