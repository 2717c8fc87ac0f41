import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_engine import FakeEngine
from live_server import fake_app
from starlette.testclient import TestClient

from server.routes.ui import PAGE_PATHS

KEY = "sk-page"


def client_of(**settings):
    return TestClient(fake_app(FakeEngine(), **settings), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/ui/app.js", "text/javascript; charset=utf-8"),
        ("/ui/style.css", "text/css; charset=utf-8"),
        ("/ui/icon.svg", "image/svg+xml"),
    ],
)
def test_every_kind_of_file_says_what_it_is(client, path, media_type):
    response = client.get(path)

    assert response.status_code == 200
    assert response.headers["Content-Type"] == media_type
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in response.headers["Content-Security-Policy"]
    assert "unsafe" not in response.headers["Content-Security-Policy"]


@pytest.mark.parametrize("path", ["/", "/ui/app.js"])
def test_files_are_sent_again_only_when_they_changed(client, path):
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})

    assert first.headers["Cache-Control"] == "no-cache"
    assert (again.status_code, again.content) == (304, b"")


def test_nothing_but_the_page_lies_there(client):
    for path in ("/ui/", "/ui/none.js", "/ui/%2e%2e/app.py", "/ui/../app.py"):
        assert client.get(path).status_code == 404
    assert client.post("/").status_code == 405
    assert client.head("/").status_code == 200


def test_without_ui_there_is_no_page():
    with client_of(ui=False) as client:
        assert [client.get(path).status_code for path in sorted(PAGE_PATHS)] == [404] * len(
            PAGE_PATHS
        )


def test_the_page_opens_without_a_key_and_nothing_else_does():
    with client_of(api_key=[KEY]) as client:
        assert {client.get(path).status_code for path in PAGE_PATHS} == {200}
        for path in ("/v1/models", "/metrics", "/ui/", "/ui/none.js", "/ui/../v1/models"):
            assert client.get(path).status_code == 401


def test_with_keys_and_without_ui_nothing_opens():
    with client_of(api_key=[KEY], ui=False) as client:
        assert {client.get(path).status_code for path in PAGE_PATHS} == {401}


class References(HTMLParser):
    """Collects all addresses in a page, and everything that a strict policy would block."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []
        self._is_script = False

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name in ("href", "src"):
                self.addresses.append(value)
            if name == "style" or name.startswith("on"):
                self.inline.append(f"{tag}.{name}")
        self._is_script = tag in ("script", "style")

    def handle_data(self, data):
        if self._is_script and data.strip():
            self.inline.append(data)


def test_every_address_of_the_page_is_relative_and_exists(client):
    page = References()
    page.feed(client.get("/").text)

    assert page.inline == []
    assert "ui/app.js" in page.addresses
    for address in page.addresses:
        assert re.fullmatch(r"[a-z.]+(/[a-z.-]+)?", address), "works behind a path prefix"
        assert client.get(f"/{address}").status_code == 200


def test_modules_import_only_each_other():
    directory = Path(__file__).parents[3] / "server" / "ui"
    for module in directory.glob("*.js"):
        for address in re.findall(r'from "([^"]+)"', module.read_text()):
            assert (directory / address).is_file(), f"{module.name} imports {address}"


def test_model_text_never_becomes_markup():
    directory = Path(__file__).parents[3] / "server" / "ui"
    for module in directory.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", module.read_text()
        )
