"""The answer to a request for speech, made while it is sent.

Knows a client that may leave at any moment, a queue in which one can wait too long, and the forms of an answer: sound
while it is made, sound when it is whole, events, JSON. What is said is made by `speaking`, and put into formats by
`encoding`.
"""

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import numpy as np
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dia_jax.config import DiaError, one_line
from dia_jax.serving import speaking
from dia_jax.serving.admission import Ticket
from dia_jax.serving.encoding import FORMATS, Encoder
from dia_jax.serving.errors import ApiError, of_request
from dia_jax.serving.gate import SEND_SECONDS, ClientLeft
from dia_jax.serving.metrics import Listener
from dia_jax.serving.schema import DialogueRequest, SpeechRequest, Word
from dia_jax.serving.service import Service

QUEUE_NEWS = 1.0
"""Seconds after which a dialogue that waits is told again how many are ahead of it."""

SLICE = 1 << 18
"""Bytes that are sent at a time."""

Item = np.ndarray | list[Word]
"""Samples, or the words of a clip whose samples are all there."""


class Spoken(Response):
    """An answer that is made while it is sent, to a client that may leave.

    Args:
        service: that speaks.
        request: what is asked for.
        wish: checks the script; called in a thread, after admission.
        text: for the log, and to count.
    """

    def __init__(
        self,
        service: Service,
        request: SpeechRequest | DialogueRequest,
        wish: Callable[[], speaking.Wish],
        *,
        text: str,
    ):
        self._service, self._request, self._make_wish, self._text = service, request, wish, text
        self._format = FORMATS[request.response_format]
        self._is_dialogue = isinstance(request, DialogueRequest)
        self._is_timed = self._is_dialogue and request.stream_format != "audio"
        self.status_code = 200
        self.background: BackgroundTask | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer, line = _Answer(send), scope["log"]
        work = asyncio.create_task(self._answer(answer, line))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientLeft
            await work
        except (ClientLeft, asyncio.CancelledError):  # Ray cancels where others tell that the client left
            line["outcome"] = "client left"
            self._service.metrics.cancelled.inc()
            raise
        except ApiError as error:
            if error.status in (429, 503):
                self._service.metrics.refused.labels(error.code).inc()
            await answer.fail(error, scope, receive)
        except DiaError as error:
            await answer.fail(of_request(error), scope, receive)
        except Exception as error:
            line["error"] = f"{type(error).__name__}: {one_line(error)}"
            problem = ApiError(500, "The server failed at this request; its log says why.", code="failed")
            await answer.fail(problem, scope, receive)
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.wait({work, gone})

    async def _answer(self, answer: "_Answer", line: dict[str, Any]) -> None:
        service = self._service
        line["characters"] = len(self._text)
        if service.settings.log_texts:
            line["text"] = self._text
        with service.desk.admit() as ticket:
            patience = asyncio.timeout(service.settings.queue_seconds)
            try:
                async with patience:
                    ticket.on_begin = lambda: patience.reschedule(None)
                    await self._serve(answer, ticket, line)
            except TimeoutError:
                if not patience.expired():
                    raise
                raise service.desk.too_late() from None
            finally:
                ticket.on_begin = lambda: None

    async def _serve(self, answer: "_Answer", ticket: Ticket, line: dict[str, Any]) -> None:
        service = self._service
        wish = await asyncio.to_thread(self._make_wish)
        clips = await asyncio.to_thread(speaking.clips_of, service.dia, wish, slots=service.settings.slots)
        line["seed"] = wish.seed
        answer.headers = {
            "content-type": self._format.media_type,
            "x-sample-rate": str(self._format.rate),
            "x-seed": str(wish.seed),
        }
        listener = Listener(service.metrics, ticket.admitted)
        wanted = self._request.stream
        is_sse = self._request.stream_format == "sse"
        is_stream = bool(clips) and not wish.has_to_be_whole and self._request.stream_format != "json"
        is_stream = is_stream and (wanted if wanted is not None else is_sse or self._format.streams)
        if is_sse:
            await self._send_events(answer, ticket, self._items(ticket, wish, clips, is_stream), wish.seed, listener)
        elif is_stream:
            await self._send_stream(answer, self._items(ticket, wish, clips, True), listener)
        else:
            await self._send_whole(answer, ticket, wish, clips, listener)
        ticket.is_served = True
        now = time.perf_counter()
        listener.end(now, is_stream=is_stream)
        assert ticket.began is not None
        service.metrics.queue_wait.observe(ticket.began - ticket.admitted)
        line["queue_seconds"] = round(ticket.began - ticket.admitted, 3)
        line["first_audio_seconds"] = round((listener.first or now) - ticket.admitted, 3)
        line["audio_seconds"] = round(listener.seconds, 3)

    async def _items(
        self, ticket: Ticket, wish: speaking.Wish, clips: list[speaking.Clip], is_stream: bool
    ) -> AsyncGenerator[Item]:
        """Samples and words: as they are made, or all of each."""
        if not is_stream:
            samples, words = await self._whole(ticket, wish, clips)
            for start in range(0, len(samples), speaking.SAMPLE_RATE):  # in seconds, between which others are served
                yield samples[start : start + speaking.SAMPLE_RATE]
            yield words
            return
        slots = self._service.settings.slots
        items = speaking.heard(self._service.dia, wish, clips, ticket, slots=slots, timed=self._is_timed)
        async with contextlib.aclosing(items):
            async for item in items:
                yield item

    async def _whole(
        self, ticket: Ticket, wish: speaking.Wish, clips: list[speaking.Clip]
    ) -> tuple[np.ndarray, list[Word]]:
        service = self._service
        return await speaking.whole(
            service.dia,
            wish,
            clips,
            ticket,
            slots=service.settings.slots,
            timed=self._is_timed,
            threads=service.threads,
        )

    async def _send_stream(self, answer: "_Answer", items: AsyncGenerator[Item], listener: Listener) -> None:
        encoder = Encoder(self._request.response_format, whole=False)
        try:
            async with contextlib.aclosing(items):
                async for samples in items:
                    assert isinstance(samples, np.ndarray)
                    data = encoder.encode(samples)
                    await answer.send(data)
                    listener.hear(len(samples), time.perf_counter(), is_sent=bool(data))
                    answer.check_pace(listener.seconds)
            await answer.send(encoder.finish())
        finally:
            encoder.close()
        await answer.end()

    async def _send_whole(
        self, answer: "_Answer", ticket: Ticket, wish: speaking.Wish, clips: list[speaking.Clip], listener: Listener
    ) -> None:
        samples, words = await self._whole(ticket, wish, clips)
        name, rate = self._request.response_format, self._format.rate
        if self._request.stream_format == "json":
            answer.headers["content-type"] = "application/json"
            data = await asyncio.to_thread(_timed, name, samples, words, rate=rate, seed=wish.seed)
        else:
            data = await asyncio.to_thread(_encoded, name, samples)
        answer.headers["content-length"] = str(len(data))
        await answer.send(data)
        listener.hear(len(samples), time.perf_counter())
        await answer.end()

    async def _send_events(
        self, answer: "_Answer", ticket: Ticket, items: AsyncGenerator[Item], seed: int, listener: Listener
    ) -> None:
        answer.headers |= {"content-type": "text/event-stream", "cache-control": "no-store"}
        encoder = Encoder(self._request.response_format, whole=False)

        async def say(data: bytes, samples: int = 0) -> None:
            if data:
                await answer.event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
            listener.hear(samples, time.perf_counter(), is_sent=bool(data))
            answer.check_pace(listener.seconds)

        async with contextlib.aclosing(items):
            try:
                first = asyncio.ensure_future(anext(items, None))
                try:
                    while not (await asyncio.wait({first}, timeout=QUEUE_NEWS))[0]:
                        if self._is_dialogue and ticket.began is None:
                            ahead = self._service.desk.ahead_of(ticket)
                            await answer.event({"type": "dialogue.queued", "ahead": ahead})
                finally:
                    first.cancel()
                    await asyncio.wait({first})
                item = first.result()
                if self._is_dialogue:
                    rate = self._format.rate
                    await answer.event({"type": "dialogue.started", "seed": seed, "sample_rate": rate})
                while item is not None:
                    if isinstance(item, np.ndarray):
                        await say(encoder.encode(item), len(item))
                    elif self._is_dialogue:
                        await answer.event({"type": "dialogue.words", "words": [word.model_dump() for word in item]})
                    item = await anext(items, None)
                await say(encoder.finish())
            finally:
                encoder.close()
        count_in = len(self._text.encode(errors="replace"))
        count_out = round(listener.seconds * speaking.FRAME_RATE)
        usage = {"input_tokens": count_in, "output_tokens": count_out, "total_tokens": count_in + count_out}
        await answer.event({"type": "speech.audio.done", "seconds": round(listener.seconds, 3), "usage": usage})
        await answer.end()


def _encoded(name: str, samples: np.ndarray) -> bytes:
    encoder = Encoder(name, whole=True)
    try:
        encoder.encode(samples)
        return encoder.finish()
    finally:
        encoder.close()


def _timed(name: str, samples: np.ndarray, words: list[Word], *, rate: int, seed: int) -> bytes:
    """A recording with its words, as `schema.Timed` describes it."""
    timed = {
        "audio": base64.b64encode(_encoded(name, samples)).decode(),
        "format": name,
        "sample_rate": rate,
        "seconds": len(samples) / speaking.SAMPLE_RATE,
        "seed": seed,
        "words": [word.model_dump() for word in words],
    }
    return json.dumps(timed).encode()


async def _gone(receive: Receive) -> None:
    """Waits for the client to leave."""
    while (await receive())["type"] != "http.disconnect":
        pass


class _Answer:
    """What is sent to a client; nothing is, before there is something to send.

    Attributes:
        headers: of the answer, until it begins.
    """

    def __init__(self, send: Send):
        self.headers: dict[str, str] = {}
        self._send, self._has_begun, self._waited = send, False, 0.0

    async def send(self, data: bytes) -> None:
        """Sends in slices, each of which the client has to take within `gate.SEND_SECONDS`."""
        began = time.perf_counter()
        for start in range(0, len(data), SLICE):
            await self._begin()
            part = data[start : start + SLICE]
            await self._send({"type": "http.response.body", "body": part, "more_body": True})
        self._waited += time.perf_counter() - began

    def check_pace(self, seconds: float) -> None:
        """Raises ClientLeft for a client that reads so slowly that nobody can be listening.

        Args:
            seconds: of audio that were sent; a player may take as long.
        """
        if self._waited > SEND_SECONDS + seconds:
            raise ClientLeft

    async def event(self, content: dict[str, Any]) -> None:
        """Sends a server-sent event."""
        await self.send(f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode())

    async def end(self) -> None:
        await self._begin()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: ApiError, scope: Scope, receive: Receive) -> None:
        """Sends an error. Sound that has begun is broken off, so that nobody takes a part for the whole."""
        if not self._has_begun:
            await error.response(scope, receive, self._send)
        elif self.headers["content-type"] == "text/event-stream":
            await self.event({"type": "error", **error.body})
            await self.end()

    async def _begin(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
