"""What a client is told when it cannot be served: an HTTP status and a JSON object in OpenAI's form."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

LINGER = 5.0  # seconds in which the rest of a refused body is taken, and thrown away


class ApiError(Exception):
    """A request that is refused.

    Args:
        param: the field that is at fault.
        code: a word for programs, such as "context_length_exceeded".
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def to_json(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


def bad(message: str, param: str | None = None) -> ApiError:
    """Status 400."""
    return ApiError(400, message, param)


class Unread(JSONResponse):
    """The answer to a request whose body is not read to its end. The connection ends with it.

    A socket that is closed with bytes unread resets the connection, and a client that is still sending then loses the
    answer. So the answer goes out at once, what the client goes on sending is thrown away for up to `LINGER` seconds, and
    only then the connection ends.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [*self.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(self.body), "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})
