"""Servers for clients to talk to: one around a fake engine, one with the default model."""

from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving
from real_server import real_server


@pytest.fixture(scope="session", params=["fake", pytest.param("real", marks=pytest.mark.model)])
def server_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a server."""
    if request.param == "fake":
        with serving(fake_app(FakeEngine())) as url:
            yield url
    else:
        yield request.getfixturevalue("real_server_url")


@pytest.fixture(scope="session")
def real_server_url() -> Iterator[str]:
    """The address of a server with the default model."""
    with real_server() as url:
        yield url
