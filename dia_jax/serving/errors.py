"""What is said to a client whose request is not served, in the shape that OpenAI's clients expect."""

import json
from typing import Any

from starlette.responses import Response

from dia_jax.config import DiaError
from dia_jax.loop import DecodeError

KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is not served.

    Args:
        status: of HTTP.
        message: one sentence that names the value, the limit and the remedy.
        param: the field that is to blame, if it is one.
        code: a word for programs.
        retry_after: whole seconds after which it is worth to try again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        kind = KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        headers = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        if self.status in (408, 413):
            headers["connection"] = "close"  # what is left of the body is not read
        return json_response(self.body, status=self.status, headers=headers)


def of_request(error: DiaError, *, param: str | None = None) -> ApiError:
    """What the library says about a request, for its client. A clip that the model cannot make is not to blame."""
    status = 500 if isinstance(error, DecodeError) else 400
    return ApiError(
        status, " ".join(str(error).split()), param=param, code="invalid_value" if status == 400 else "failed"
    )


def json_response(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON in ASCII: what a client sent may hold characters that UTF-8 cannot."""
    data = json.dumps(content, allow_nan=False, separators=(",", ":")).encode()
    return Response(data, status, headers, media_type="application/json")
