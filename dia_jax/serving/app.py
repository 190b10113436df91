"""The routes: OpenAI's, dialogues, voices, health and metrics, and the page.

Knows HTTP, and what is checked before a request is admitted. `answering` does the rest.
"""

import asyncio
import contextlib
import importlib.resources
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from dia_jax import __version__
from dia_jax.config import DiaError, short
from dia_jax.serving import speaking
from dia_jax.serving.answering import Spoken
from dia_jax.serving.encoding import FORMATS
from dia_jax.serving.errors import ApiError, json_response, of_request
from dia_jax.serving.gate import ClientLeft, Gate
from dia_jax.serving.schema import (
    DialogueRequest,
    ErrorOut,
    Model,
    Models,
    SpeechRequest,
    Status,
    Timed,
    VoiceOut,
    Voices,
)
from dia_jax.serving.service import Service
from dia_jax.serving.voices import ShelfVoice

PAGE = {
    "": ("index.html", "text/html"),
    "page.js": ("page.js", "text/javascript"),
    "page.css": ("page.css", "text/css"),
}
PAGE_HEADERS = {
    "content-security-policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' data: blob:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "cache-control": "no-cache",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorOut, "description": text}
    for status, text in {
        400: "The request cannot be served as it is; the message says what to change.",
        401: "The API key is missing or wrong.",
        403: "Not allowed here.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        429: "All places are taken; try again after Retry-After seconds.",
        503: "The server loads or stops; try again after Retry-After seconds.",
    }.items()
}
SOUND: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The sound. X-Sample-Rate and X-Seed tell its rate and seed.",
        "content": {
            name: {"schema": {"type": "string", "format": "binary"}}
            for name in dict.fromkeys(f.media_type for f in FORMATS.values())
        }
        | {"text/event-stream": {"schema": {"type": "string"}}},
    }
}


def create_app(service: Service) -> FastAPI:
    """The application, to be run by any ASGI server.

    Args:
        service: is opened when the application starts, and closed when it ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # Beside requests, so that /health and /ready answer while the model loads.
        tasks = [asyncio.create_task(service.open()), asyncio.create_task(service.tidy())]
        yield
        for task in tasks:
            task.cancel()
        service.close()

    app = FastAPI(
        title="dia_jax",
        version=__version__,
        description="Dia, the two-speaker text-to-speech model. OpenAI's clients can use it as it is.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.add_middleware(Gate, service=service)
    if service.settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=service.settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id", "x-sample-rate", "x-seed"],
        )
    _handle_errors(app)
    _add_speech(app, service)
    _add_voices(app, service)
    _add_operations(app, service)
    _add_page(app)
    _describe(app)
    return app


# --- Speech ----------------------------------------------------------------------------------------------------------


def _add_speech(app: FastAPI, service: Service) -> None:
    @app.post("/v1/audio/speech", tags=["speech"], response_class=Response, responses=SOUND | ERRORS)
    async def speech(request: SpeechRequest) -> Response:
        """Speaks a text or a script, as OpenAI's endpoint does."""
        service.desk.check_state()
        voice = service.shelf.find(request.voice_name, param="voice")
        _check_size(service, request.input, param="input")

        def wish() -> speaking.Wish:
            return speaking.wish_of_text(service.dia, request.input, voice, **request.options)

        return Spoken(service, request, wish, text=request.input)

    @app.post(
        "/v1/audio/dialogue",
        tags=["speech"],
        response_class=Response,
        responses={
            200: {
                **SOUND[200],
                "content": SOUND[200]["content"]
                | {"application/json": {"schema": {"$ref": "#/components/schemas/Timed"}}},
            }
        }
        | ERRORS,
    )
    async def dialogue(request: DialogueRequest) -> Response:
        """Speaks a script with a cast; with "sse" or "json", tells when each word is said."""
        service.desk.check_state()
        if (request.turns is None) == (request.script is None):
            raise ApiError(400, "Give either turns or a script.", param="turns", code="invalid_value")
        cast = {name: service.shelf.find(voice, param="cast") for name, voice in request.cast.items()}
        text = request.script if request.script is not None else "\n".join(turn.text for turn in request.turns or [])
        _check_size(service, text, param="script")
        turns = None if request.turns is None else [turn.model_dump() for turn in request.turns]

        def wish() -> speaking.Wish:
            return speaking.wish_of_script(turns or text, cast, **request.options)

        return Spoken(service, request, wish, text=text)


def _check_size(service: Service, text: str, *, param: str) -> None:
    size, limit = len(text.encode(errors="replace")), service.settings.max_script_bytes
    if size > limit:
        raise ApiError(
            400,
            f"The {param} has {size:,} bytes; at most {limit:,} are taken. Send it in parts.",
            param=param,
            code="too_long",
        )


# --- Voices and models -----------------------------------------------------------------------------------------------


def _add_voices(app: FastAPI, service: Service) -> None:
    making = asyncio.Semaphore(1)

    def shown(voice: ShelfVoice) -> VoiceOut:
        return VoiceOut(id=voice.name, name=voice.name, kind=voice.kind, description=voice.description)

    @app.get("/v1/audio/voices", tags=["voices"], responses=ERRORS)
    async def voices() -> Voices:
        """The voices that can be named."""
        service.desk.check_state()
        return Voices(voices=[shown(voice) for voice in service.shelf.voices], aliases=dict(service.shelf.aliases))

    @app.post("/v1/audio/voices", tags=["voices"], status_code=201, responses=ERRORS | {409: {"model": ErrorOut}})
    async def add_voice(
        name: Annotated[str, Form(description="1 to 40 characters.")],
        ref_text: Annotated[str, Form(description="What is said in the recording, word for word.")],
        consent: Annotated[str, Form(description='"true": the speaker agreed.')],
        request: Request,
        audio_sample: Annotated[UploadFile, File(description="5 to 15 seconds of one speaker; wav, flac, ogg or mp3.")],
    ) -> VoiceOut:
        """Makes a voice of a recording and its transcript, after checking that they go together."""
        service.desk.check_state()
        if not service.settings.allow_uploads:
            raise ApiError(403, "This server takes no voices; its owner can allow them with --allow-uploads.")
        if consent.strip().lower() != "true":
            raise ApiError(
                400, 'A voice needs its speaker\'s consent: send the field consent with "true".', param="consent"
            )
        with service.desk.admit() as ticket:  # it takes the device as a clip does
            try:
                async with asyncio.timeout(service.settings.queue_seconds):
                    await making.acquire()
            except TimeoutError:
                raise service.desk.too_late() from None
            try:
                if await request.is_disconnected():
                    raise ClientLeft
                ticket.begin()
                recording = await audio_sample.read()
                try:
                    return shown(await asyncio.to_thread(service.shelf.add, name, recording, ref_text))
                except DiaError as error:
                    raise of_request(error, param="audio_sample") from None
            finally:
                making.release()

    @app.delete("/v1/audio/voices/{name}", tags=["voices"], responses=ERRORS | {404: {"model": ErrorOut}})
    async def remove_voice(name: str) -> dict[str, Any]:
        """Deletes a voice that a client added."""
        service.desk.check_state()
        if not service.settings.allow_uploads:
            raise ApiError(403, "Voices cannot be deleted here; the server's owner can allow it with --allow-uploads.")
        service.shelf.remove(name)
        return {"id": name, "deleted": True}

    models = Models(data=[Model(id=service.settings.name)], models=[Model(id=service.settings.name)])

    @app.get("/v1/models", tags=["voices"])
    @app.get("/v1/audio/models", tags=["voices"])
    async def list_models() -> Models:
        """The loaded model."""
        return models


# --- Operations ------------------------------------------------------------------------------------------------------


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/health", tags=["operations"])
    async def health() -> dict[str, Literal["ok"]]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/ready", tags=["operations"], responses={503: {"model": Status}})
    async def ready() -> Response:
        """Whether requests are served; 503 while the model loads, and before the server stops."""
        status = service.status
        return json_response(status.model_dump(), status=200 if status.status == "ready" else 503)

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(service.metrics.text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    folder = importlib.resources.files("dia_jax.serving") / "page"
    for path, (name, kind) in PAGE.items():
        app.add_api_route(f"/{path}", _file((folder / name).read_bytes(), kind), include_in_schema=False)


def _file(data: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    """A route without parameters: any that it had could be set by whoever writes a link."""

    async def file() -> Response:
        return Response(data, headers=PAGE_HEADERS, media_type=kind)

    return file


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def on_api_error(request: Request, error: ApiError) -> Response:
        if error.status in (429, 503):
            app.state.service.metrics.refused.labels(error.code).inc()
        return error.response

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return ApiError(400, "The body is no JSON.", code="json_invalid").response
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        given = f", and was {short(first['input'])}" if first["type"] != "missing" else ""
        message = f"{place or 'The body'}: {first['msg']}{given}."
        return ApiError(400, message, param=place or None, code=first["type"]).response

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path[:100]}: {error.detail}."
        response = ApiError(error.status_code, message).response
        response.headers.update(error.headers or {})
        return response


def _describe(app: FastAPI) -> None:
    """Lets the description say what is really answered: 400 where the framework would say 422."""
    described = app.openapi()
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)
    described["components"]["schemas"].setdefault(
        "Timed", Timed.model_json_schema(ref_template="#/components/schemas/{model}")
    )
