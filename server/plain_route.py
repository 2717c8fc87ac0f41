"""A FastAPI route whose endpoint takes the request and nothing else."""

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class PlainRoute(APIRoute):
    """A route that calls its endpoint directly.

    What FastAPI does around an endpoint (dependencies and their clean-up, parameters, encoding the
    answer) costs a short request several percent of its time, even if the endpoint uses none of it.
    Exceptions are answered where those of middleware and routing are.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the endpoint; refuse methods other than its own as FastAPI does."""
        if scope["method"] in (self.methods or ()):
            response = await self.endpoint(Request(scope, receive, send))
            await response(scope, receive, send)
        else:
            await super().handle(scope, receive, send)
