"""A FastAPI route whose endpoint is given the request, and nothing else of it."""

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class PlainRoute(APIRoute):
    """What FastAPI does for an endpoint beside (dependencies and their end, parameters, encoding an
    answer) costs a short request several percent of its time, for endpoints that leave it nothing
    to do. Exceptions are answered where those of middleware and routing are.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The endpoint's answer; other methods than its own are refused as FastAPI does."""
        if scope["method"] in (self.methods or ()):
            response = await self.endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().handle(scope, receive, send)
