"""What stands before the routes: keys, other sites' pages, the size of bodies, and a line in the log for each request.

Knows HTTP and limits; knows no speech. Bodies are read whole, up to their limit and within a time, before a route sees
them: none of these has to think of clients that send too much or too slowly.
"""

import asyncio
import hmac
import json
import logging
import re
import sys
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dia_jax.config import one_line
from dia_jax.serving.errors import ApiError
from dia_jax.serving.service import Service

BODY_SECONDS = 30.0
"""In which a body has to arrive."""
SEND_SECONDS = 60.0
"""For which a client may not read what is sent to it."""
MAX_HELD = 500_000_000
"""Bytes of bodies that are held at the same time."""
OPEN_PATHS = ("/", "/page.js", "/page.css", "/health", "/ready", "/openapi.json")
"""What needs no key: it tells nothing that is secret, and the page has to be there to ask for the key."""
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

QUIET_PATHS = ("/health", "/ready", "/metrics")
"""What machines ask for every few seconds; logged as details."""

log = logging.getLogger("dia_jax.serving")


def log_to_stderr() -> None:
    """One line of JSON for each request on standard error, and what goes wrong in uvicorn."""
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for logger, level in ((log, logging.INFO), (logging.getLogger("uvicorn.error"), logging.WARNING)):
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


class Gate:
    """ASGI middleware around the whole application.

    Args:
        app: what comes behind it.
        service: whose settings and metrics are used.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service, self._held = app, service, 0
        self._keys = [key.encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 0
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        identity = given if re.fullmatch(r"[\w\-]{1,64}", given, re.ASCII) else uuid.uuid4().hex[:16]
        scope["log"] = line = {"id": identity}
        is_over = False

        async def answer(message: Message) -> None:
            nonlocal status, is_over
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *HEADERS, (b"x-request-id", identity.encode())]}
            try:
                await asyncio.wait_for(send(message), SEND_SECONDS)
            except (TimeoutError, OSError):
                raise ClientLeft from None
            is_over = message["type"] == "http.response.body" and not message.get("more_body")

        try:
            try:
                self._check(scope)
                body = await self._read(scope, receive)
            except ApiError as error:
                self._service.metrics.refused.labels(error.code or str(error.status)).inc()
                await error.response(scope, receive, answer)
            else:
                self._held += len(body or b"")
                try:
                    await self._app(scope, receive if body is None else _again(body, receive), answer)
                finally:
                    self._held -= len(body or b"")
        except ClientLeft:
            line["outcome"] = "client left"
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {one_line(error)}"
            log.debug("what failed:", exc_info=True)
            if not status:
                problem = ApiError(500, "The server failed at this request; its log says why.", code="failed")
                await problem.response(scope, receive, answer)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._service.metrics.requests.labels(route, str(status)).inc()
            line |= {"method": scope["method"], "path": scope["path"], "status": status}
            line |= {
                "seconds": round(time.perf_counter() - began, 3),
                "outcome": line.get("outcome", "done" if is_over else "broken off"),
            }
            log.log(logging.DEBUG if route in QUIET_PATHS else logging.INFO, json.dumps(line))

    def _check(self, scope: Scope) -> None:
        """Raises ApiError for a request that may not come in."""
        headers = dict(scope["headers"])
        if self._keys and scope["path"] not in OPEN_PATHS and scope["method"] != "OPTIONS":
            kind, _, given = headers.get(b"authorization", b"").partition(b" ")
            # All are compared, each in constant time, so that no time tells how much of a key is right.
            matches = [hmac.compare_digest(given.strip(), key) for key in self._keys]
            if kind.lower() != b"bearer" or not any(matches):
                raise ApiError(401, "This server needs an API key: Authorization: Bearer KEY.", code="invalid_api_key")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if scope["method"] in ("POST", "DELETE") and origin:
            host = headers.get(b"host", b"").decode("latin-1")
            if origin.partition("://")[2] != host and origin not in self._service.settings.cors_origins:
                raise ApiError(
                    403, "Pages of other origins may not use this server; its owner can allow one with --cors-origin."
                )

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """Reads the body of a request that may have one."""
        if scope["method"] not in ("POST", "PUT", "PATCH", "DELETE"):
            return None
        settings = self._service.settings
        # A character can take six bytes in JSON; beside the script there are few.
        limit = 6 * settings.max_script_bytes + 65_536
        if scope["path"] == "/v1/audio/voices" and settings.allow_uploads:
            limit = settings.max_upload_bytes + 65_536
        too_large = ApiError(
            413, f"The body is larger than {limit:,} bytes, the most that is taken here.", code="too_large"
        )
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > limit:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    if self._held + len(body) > MAX_HELD:
                        message = "The server holds as many requests as its memory allows. Try again in 5 seconds."
                        raise ApiError(429, message, code="bodies_full", retry_after=5)
                    if not message.get("more_body"):
                        break
        except TimeoutError:
            raise ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.", code="timeout") from None
        return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """Hands on a body that was read, and then waits for the client to leave."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


class ClientLeft(Exception):
    """The client is gone, or does not read what it is sent."""
