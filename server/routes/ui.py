"""GET / and /ui/…: a page for people to chat with the model. Off with --no-ui.

Its files are served as they are in `server/ui`. The page is an ordinary client of the HTTP API, so
the files are no secret: they need no key, while the page's own requests do.
"""

from pathlib import Path

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

_DIRECTORY = Path(__file__).parents[1] / "ui"
_PREFIX = "/ui"
_INDEX = "index.html"
_HEADERS = {
    "Cache-Control": "no-cache",  # revalidate always; the ETag makes that a 304
    "Content-Security-Policy": "default-src 'self'; object-src 'none'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Python's own table depends on the machine; with nosniff, a wrong type would break the page.
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_NAMES = frozenset(path.name for path in _DIRECTORY.iterdir() if path.suffix in _MEDIA_TYPES)

# What a browser fetches before it can ask a person for the key.
PAGE_PATHS = frozenset({"/", *(f"{_PREFIX}/{name}" for name in _NAMES)})


class _PageFiles(StaticFiles):
    """Static files (ETag, 304, HEAD) under the page's own headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, if it is part of the page.

        Raises:
            HTTPException: 404 or 405.
        """
        if path not in _NAMES:
            raise HTTPException(status_code=404)
        response = await super().get_response(path, scope)
        response.headers.update(_HEADERS)
        if response.status_code == 200:
            response.headers["Content-Type"] = _MEDIA_TYPES[Path(path).suffix]
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at / and its parts below /ui."""
    files = _PageFiles(directory=_DIRECTORY)

    async def index(request: Request) -> Response:
        return await files.get_response(_INDEX, request.scope)

    app.add_route("/", index, methods=["GET"], include_in_schema=False)
    app.mount(_PREFIX, files)
