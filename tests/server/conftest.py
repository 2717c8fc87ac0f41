"""Fixtures for a server around a fake engine: `client` in process, `live_url` over real HTTP."""

from collections.abc import Iterator

import pytest
from fake_engine import FakeEngine
from live_server import fake_app, serving
from starlette.testclient import TestClient


@pytest.fixture
def engine() -> FakeEngine:
    """The engine behind `client` and `live_url`; tests change it before they send requests."""
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> Iterator[TestClient]:
    """An in-process client of the application."""
    with TestClient(fake_app(engine), raise_server_exceptions=False) as test_client:
        yield test_client


@pytest.fixture
def live_url(engine: FakeEngine) -> Iterator[str]:
    """The address of a real HTTP server."""
    with serving(fake_app(engine)) as url:
        yield url
