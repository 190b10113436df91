"""The server on a real socket, by the client that most people have: OpenAI's own package, unchanged."""

import base64
import concurrent.futures
import contextlib
import io
import json
import logging
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import openai
import pytest
import soundfile
import uvicorn

from dia_jax import DecodeError, Dia
from dia_jax.audio import pcm16
from dia_jax.cli import run
from dia_jax.serving import Service, Settings, create_app, gate, server, speaking
from dia_jax.serving.admission import Desk
from dia_jax.serving.encoding import FORMATS, Encoder
from dia_jax.serving.errors import ApiError
from dia_jax.serving.settings import ServingError, read_keys
from dia_jax.serving.voices import OPENAI_VOICES, Shelf

SCRIPT = "[S1] Hello, how are you today? [S2] I am fine, thank you very much."
TEACHER = Path(__file__).parent / "tiny_teacher.flac"
LONG = " ".join(["The old farmer found a letter in the kitchen. Please close the door, it is cold."] * 3)


@pytest.fixture(scope="module")
def tiny() -> Dia:
    return Dia.from_pretrained("tiny")


class Running:
    """A server in a thread of this process."""

    def __init__(self, dia: Dia, **settings: Any):
        self.service = Service(lambda: dia, Settings(warmup=False, **settings))
        listener = socket.create_server(("127.0.0.1", 0))
        self.address = listener.getsockname()
        self.url = f"http://127.0.0.1:{self.address[1]}"
        config = uvicorn.Config(
            create_app(self.service), http=server._Protocol, ws="none", log_config=None, timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],))

    def __enter__(self) -> "Running":
        self._thread.start()
        wait_for(lambda: self.service.desk.state == "ready")
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=120)
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.openai.close()
        self._server.should_exit = True
        self._thread.join()


def wait_for(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def running(tiny: Dia, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("voices")
    tiny.voices["S1"].save(folder / "anna.voice")
    with Running(tiny, slots=2, queue=6, voices=str(folder), allow_uploads=True, max_voices=2) as started:
        yield started


@pytest.fixture(scope="module")
def spoken(tiny: Dia) -> np.ndarray:
    return tiny.generate(SCRIPT, seed=3)


def exact(samples: np.ndarray) -> np.ndarray:
    return np.frombuffer(pcm16(samples), "<i2")


def decode(data: bytes) -> tuple[np.ndarray, int]:
    """Any format to float samples, by FFmpeg's libraries."""
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(audio=0))
    return np.concatenate([frame.to_ndarray().mean(axis=0) for frame in frames]), frames[0].sample_rate


# --- OpenAI's client -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [None, False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_what_generate_makes(running: Running, spoken: np.ndarray, name: str, stream: bool | None):
    extra = {"seed": 3} | ({} if stream is None else {"stream": stream})
    with running.openai.audio.speech.with_streaming_response.create(
        model="tts-1", voice="S1", input=SCRIPT, response_format=name, extra_body=extra
    ) as answer:
        parts = list(answer.iter_bytes())
        rate = int(answer.headers["x-sample-rate"])
        assert answer.headers["x-seed"] == "3"
        is_whole = stream is False or (stream is None and not FORMATS[name].streams)
        assert ("content-length" in answer.headers) is is_whole
    data = b"".join(parts)
    wanted = len(spoken) * rate / 44_100
    if name in ("pcm", "pcm_44100"):
        assert len(data) == 2 * round(wanted)
    else:
        decoded, found = decode(data)
        assert found == rate
        # Without a header that states the length, encoder delay and the last frame's padding stay.
        slack = {"mp3": 0 if is_whole else 2 * 1152, "aac": 2 * 1024, "opus": 1}.get(name, 0)
        assert -1 <= len(decoded) - wanted <= slack
    if name in ("wav", "flac") and not (name == "flac" and stream):
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(data), dtype="int16")[0], exact(spoken))
    elif name == "flac":
        np.testing.assert_array_equal(np.round(decode(data)[0]), exact(spoken))
    elif name == "pcm_44100":
        assert data == pcm16(spoken)


def test_text_without_tags_is_spoken_by_the_voice(running: Running, tiny: Dia):
    for voice, tag in (("S1", "S1"), ("S2", "S2"), ("ash", None)):
        tag = tag or running.service.shelf.find("ash", param="").tag or "S1"
        answer = running.openai.audio.speech.create(
            model="any", voice=voice, input="Good morning.", response_format="wav", extra_body={"seed": 5}
        )
        if voice == "ash":  # all of OpenAI's names are dealt out among the voices of the folder
            assert running.service.shelf.aliases["ash"] == "anna"
            wanted = tiny.generate("[S1] Good morning.", seed=5, voice=tiny.voices["S1"])
        else:
            wanted = tiny.generate(f"[{tag}] Good morning.", seed=5)
        np.testing.assert_array_equal(soundfile.read(io.BytesIO(answer.content), dtype="int16")[0], exact(wanted))


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("Good [morning](x).", "[S2] Good morning (x)."),
        ("# News\n**All** is [well].", "[S2] News All is well ."),
        ("[Anna] Good morning.", "[S2] Good morning."),
        ("[S2] Good morning. [S1]", "[S2] Good morning. [S1]"),
    ],
)
def test_what_is_no_script_is_read_as_text(tiny: Dia, text: str, spoken: str):
    voice = Shelf(tiny, Settings()).find("S2", param="")
    (clip,) = speaking.clips_of(tiny, speaking.wish_of_text(tiny, text, voice, seed=1), slots=1)
    assert clip.text == spoken


def test_events_carry_the_same_sound(running: Running, spoken: np.ndarray):
    with running.openai.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts",
        voice="S2",
        input=SCRIPT,
        response_format="pcm",
        stream_format="sse",
        instructions="Cheerfully.",
        extra_body={"seed": 3, "response_format": "pcm_44100"},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line]
    assert [event["type"] for event in events[:-1]] == ["speech.audio.delta"] * (len(events) - 1)
    assert len(events) > 3
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == pcm16(spoken)
    assert events[-1]["type"] == "speech.audio.done"
    usage = events[-1]["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == len(spoken) // 512


def test_a_stream_is_heard_before_it_is_made(running: Running):
    body = {"input": SCRIPT, "voice": "S1", "response_format": "pcm_44100", "seed": 8}
    assert running.http.post("/v1/audio/speech", json=body).status_code == 200  # nothing is left to compile
    began = time.perf_counter()
    with running.http.stream("POST", "/v1/audio/speech", json=body) as answer:
        times = [time.perf_counter() - began for _ in answer.iter_raw()]
    assert len(times) > 3
    assert times[0] < times[-1] / 2


def test_long_text_is_divided_and_streamed(running: Running):
    body = {"input": LONG, "voice": "S2", "response_format": "wav", "seed": 1}
    with running.http.stream("POST", "/v1/audio/speech", json=body) as answer:
        data = b"".join(answer.iter_raw())
    samples, rate = soundfile.read(io.BytesIO(data))
    assert 12 < len(samples) / rate < 30
    assert np.abs(samples).max() > 0.05


def test_settings_reach_the_model(running: Running, tiny: Dia):
    settings = {"temperature": 0.7, "cfg_scale": 2.0, "top_p": 0.8, "cfg_filter_top_k": 20, "max_tokens": 60}
    body = {"input": SCRIPT, "voice": "S1", "response_format": "wav", "seed": 9, **settings}
    answer = running.http.post("/v1/audio/speech", json=body)
    wanted = tiny.generate(SCRIPT, seed=9, **settings)
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(answer.content), dtype="int16")[0], exact(wanted))


def test_speed_and_candidates_come_whole(running: Running, spoken: np.ndarray):
    body = {"input": SCRIPT, "voice": "S1", "response_format": "wav", "seed": 3}
    faster = running.http.post("/v1/audio/speech", json={**body, "speed": 1.25})
    assert len(soundfile.read(io.BytesIO(faster.content))[0]) == round(len(spoken) / 1.25)
    best = running.http.post("/v1/audio/speech", json={**body, "candidates": 2})
    assert len(soundfile.read(io.BytesIO(best.content))[0]) > 44_100


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": ""}, "input", "at least 1 character"),
        ({}, "input", "Field required"),
        ({"input": "Hello.", "voice": "nobody"}, "voice", "There is no voice 'nobody'; there are 'S1', 'S2', 'anna'"),
        ({"input": "Hello.", "voice": "../../etc/passwd"}, "voice", "There is no voice"),
        ({"input": "Hello.", "voice": "http://127.0.0.1/x.voice"}, "voice", "There is no voice"),
        ({"input": "Hello.", "voice": {"id": "nobody"}}, "voice", "There is no voice"),
        ({"input": "Hello.", "speed": 9}, "speed", "less than or equal to 4"),
        ({"input": "Hello.", "response_format": "midi"}, "response_format", "'mp3', 'opus'"),
        ({"input": "Hello.", "temperature": -1}, None, "temperature is -1"),
        ({"input": "Hello.", "temperature": "hot"}, "temperature", "valid number"),
        ({"input": "Hello.", "seed": 2**32}, "seed", "less than 4294967296"),
        ({"input": "Hello.", "max_tokens": 10**6}, None, "max_tokens is 1000000"),
        ({"input": "[S1] [S2]"}, None, "no words"),
        ({"input": "Hello \x00."}, None, "control character"),
        ({"input": "a" * 50_001}, "input", "50,001 bytes; at most 50,000"),
        ({"input": "[Anna] Hello. [Ben] Hi.", "voice": "anna"}, None, "2 speakers"),
        ({"input": LONG, "max_tokens": 100}, None, "max_tokens=100 limits a single clip"),
    ],
)
def test_what_cannot_be_spoken_is_said_in_a_sentence(running: Running, body: dict, param: str | None, message: str):
    answer = running.http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert error["message"].endswith(".")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"null",
        b'{"input": "\\ud800"}',
        b'{"input": NaN}',
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"seed": 1e999}',
    ],
)
def test_bodies_that_are_no_request(running: Running, data: bytes):
    answer = running.http.post("/v1/audio/speech", content=data, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "Traceback" not in answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (DecodeError("The logits are not finite."), "The logits are not finite."),
        (ZeroDivisionError("secret"), "The server failed at this request; its log says why."),
    ],
)
def test_what_the_server_fails_at_is_its_own_fault(
    running: Running, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
):
    def fail(*_: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(speaking, "clips_of", fail)
    answer = running.http.post("/v1/audio/speech", json={"input": "Hello."})
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == message
    assert answer.json()["error"]["type"] == "server_error"
    assert running.service.desk.idle.is_set()


# --- Dialogues -------------------------------------------------------------------------------------------------------


def test_a_dialogue_has_words_and_turns(running: Running, tiny: Dia):
    turns = [{"speaker": "Anna", "text": "Hello, how are you today?"}, {"speaker": "Ben", "text": "I am fine."}]
    body = {"turns": turns, "cast": {"Anna": "S2", "Ben": "S1"}, "seed": 2, "response_format": "wav"}
    answer = running.http.post("/v1/audio/dialogue", json={**body, "stream_format": "json"}).json()
    wanted = tiny.generate("[S2] Hello, how are you today? [S1] I am fine.", seed=2)
    samples = soundfile.read(io.BytesIO(base64.b64decode(answer["audio"])), dtype="int16")[0]
    np.testing.assert_array_equal(samples, exact(wanted))
    words = answer["words"]
    assert " ".join(word["text"] for word in words) == "Hello, how are you today? I am fine."
    assert [word["speaker"] for word in words] == ["Anna"] * 5 + ["Ben"] * 3
    assert [word["turn"] for word in words] == [0] * 5 + [1] * 3
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    assert 0 < words[-1]["end"] <= answer["seconds"] + 0.02
    with running.http.stream("POST", "/v1/audio/dialogue", json={**body, "stream_format": "sse"}) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
    assert events[0] == {"type": "dialogue.started", "seed": 2, "sample_rate": 44_100}
    assert next(event for event in events if event["type"] == "dialogue.words")["words"] == words
    assert events[-1]["type"] == "speech.audio.done"


def test_a_long_dialogue_streams_its_words_in_order(running: Running):
    script = "[S1] Hello, how are you today? [S2] I am fine, thank you very much. (pause 1) " * 3
    body = {"script": script, "seed": 2, "response_format": "pcm_44100", "stream_format": "sse"}
    with running.http.stream("POST", "/v1/audio/dialogue", json=body) as stream:
        events = [json.loads(line[6:]) for line in stream.iter_lines() if line]
    groups = [event["words"] for event in events if event["type"] == "dialogue.words"]
    assert len(groups) > 1
    words = [word for group in groups for word in group]
    assert [word["turn"] for word in words] == sorted(word["turn"] for word in words)
    assert len({word["turn"] for word in words}) == 6
    starts = [word["start"] for word in words]
    assert starts == sorted(starts)
    samples = np.frombuffer(
        b"".join(base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta"), "<i2"
    )
    assert len(samples) / 44_100 == pytest.approx(events[-1]["seconds"], abs=1e-3)
    # Where words are said there is sound, and in the pauses between there is none.
    loud = [np.abs(samples[int(word["start"] * 44_100) : int(word["end"] * 44_100) + 1]).max() for word in words]
    assert np.median(loud) > 1000


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "Give either turns or a script."),
        ({"script": "[A] Hi.", "turns": [{"text": "Hi."}]}, "Give either turns or a script."),
        ({"script": "[A] Hi. [B] Ho.", "cast": {"A": "anna"}}, "The cast has no voice for 'B'"),
        ({"script": "[A] Hi. [B] Ho. [C] Ha.", "cast": {"A": "S1"}}, "The cast has no voice for "),
        ({"script": "[A] Hi.", "cast": {"A": "S1", "C": "S1"}}, "a voice for 'C', who does not speak"),
        ({"script": "[A] Hi.", "cast": {"A": "/etc/passwd"}}, "There is no voice '/etc/passwd'"),
        ({"script": "[A] Hi. [B] Ho. [C] Ha."}, "third speaker"),
        ({"script": "[A Hi."}, "line 1, column 1"),
        ({"turns": [{"speaker": "A", "text": "Hi.", "voice": "/x"}]}, "Extra inputs"),
        ({"turns": []}, "at least 1 item"),
        ({"turns": [{"text": "Hi.", "pause": 60}] * 61}, "takes some 3,67"),
    ],
)
def test_scripts_and_casts_that_do_not_go(running: Running, body: dict, message: str):
    answer = running.http.post("/v1/audio/dialogue", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


# --- Voices ----------------------------------------------------------------------------------------------------------


def upload(running: Running, tiny: Dia, name: str, data: bytes | None = None, **fields: str) -> httpx.Response:
    form = {"name": name, "ref_text": tiny.voices["S1"].text, "consent": "true", **fields}
    return running.http.post(
        "/v1/audio/voices",
        data=form,
        files={"audio_sample": ("x.flac", TEACHER.read_bytes() if data is None else data)},
    )


def test_voices_are_added_used_and_deleted(running: Running, tiny: Dia):
    listed = running.http.get("/v1/audio/voices").json()
    assert [voice["id"] for voice in listed["voices"]] == ["S1", "S2", "anna"]
    assert listed["aliases"]["alloy"] == "anna"
    assert set(OPENAI_VOICES) <= set(listed["aliases"])
    added = upload(running, tiny, "Zoë-1")
    assert (added.status_code, added.json()["kind"]) == (201, "uploaded")
    assert upload(running, tiny, "Zoë-1").status_code == 409
    folder = Path(running.service.settings.voices) / "uploaded"
    assert [file.name for file in folder.iterdir()] == ["Zoë-1.voice"]
    answer = running.http.post(
        "/v1/audio/speech",
        json={"input": "Good morning.", "voice": "Zoë-1", "response_format": "wav", "max_tokens": 40},
    )
    assert answer.status_code == 200
    again = Shelf(tiny, running.service.settings)  # a server that is started again
    assert again.find("Zoë-1", param="").kind == "uploaded"
    assert running.http.delete("/v1/audio/voices/anna").status_code == 403
    assert running.http.delete("/v1/audio/voices/Zoë-1").json() == {"id": "Zoë-1", "deleted": True}
    assert running.http.delete("/v1/audio/voices/Zoë-1").status_code == 404
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "a/b", "a\\b", ".x", "x\r\nset-cookie: a=b", "a" * 41, "S1", "alloy", "-"]
)
def test_names_that_no_voice_can_have(running: Running, tiny: Dia, name: str):
    answer = upload(running, tiny, name)
    assert answer.status_code in (400, 409)
    assert "set-cookie" not in answer.headers
    assert not list((Path(running.service.settings.voices) / "uploaded").iterdir())


def _bomb(kind: str) -> bytes:
    """A small file of hours."""
    data = io.BytesIO()
    with soundfile.SoundFile(data, "w", 8000, 1, format=kind) as file:
        for _ in range(60):
            file.write(np.zeros(8000 * 60, np.float32))
    return data.getvalue()


def test_recordings_that_are_no_voice(running: Running, tiny: Dia, tmp_path: Path):
    teacher = TEACHER.read_bytes()
    cases: list[tuple[bytes, dict[str, str], str]] = [
        (b"", {}, "not a readable audio file"),
        (b"#!/bin/sh\n", {}, "not a readable audio file"),
        (teacher[: len(teacher) // 3], {}, ""),
        (_bomb("FLAC"), {}, "at most 60 s are read"),
        (_bomb("MP3"), {}, "60 s"),
        (teacher, {"consent": "no"}, "consent"),
        (teacher, {"ref_text": ""}, "ref_text"),
        (
            teacher,
            {"ref_text": "The spider carried seven mirrors over old bridges. Nobody counted them twice."},
            "do not go",
        ),
    ]
    for data, fields, message in cases:
        answer = upload(running, tiny, "bad", data, **fields)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
        assert "/tmp" not in answer.text
    too_large = upload(running, tiny, "bad", b"\0" * 10_100_000)
    assert too_large.status_code == 413
    assert [voice.name for voice in running.service.shelf.voices] == ["S1", "S2", "anna"]


def test_no_more_voices_than_allowed(running: Running, tiny: Dia):
    for name in ("one", "two"):
        assert upload(running, tiny, name).status_code == 201
    refused = upload(running, tiny, "three")
    assert refused.status_code == 409
    assert "2 uploaded voices, the most that are kept" in refused.json()["error"]["message"]
    for name in ("one", "two"):
        assert running.http.delete(f"/v1/audio/voices/{name}").status_code == 200


# --- Overload and ends -----------------------------------------------------------------------------------------------


def test_a_burst_is_served_or_refused_with_a_time(running: Running, tiny: Dia):
    scripts = [f"[S1] {' '.join(['Good morning.'] * (1 + i % 3))}" for i in range(24)]

    def ask(i: int) -> httpx.Response:
        with httpx.Client(timeout=120) as client:
            return client.post(
                f"{running.url}/v1/audio/speech",
                json={"input": scripts[i], "voice": "S1", "seed": i, "response_format": "wav"},
            )

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(ask, range(24)))
    assert {answer.status_code for answer in answers} == {200, 429}
    served = 0
    for i, answer in enumerate(answers):
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
        else:
            served += 1
            samples = soundfile.read(io.BytesIO(answer.content), dtype="int16")[0]
            np.testing.assert_array_equal(samples, exact(tiny.generate(scripts[i], seed=i)))
    assert served >= 8
    wait_for(lambda: running.service.desk.idle.is_set() and tiny.engine.is_idle)


@pytest.mark.parametrize(
    "body", [{"response_format": "pcm"}, {"stream": False}, {"candidates": 2}, {"stream_format": "sse"}]
)
def test_a_client_that_leaves_frees_its_slot(running: Running, tiny: Dia, body: dict):
    client = httpx.Client(timeout=60)
    text = "[S1] " + "The old farmer found a letter in the kitchen. " * 4
    request = client.build_request("POST", f"{running.url}/v1/audio/speech", json={"input": text, **body})

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError, RuntimeError):
            client.send(request, stream=True).read()

    thread = threading.Thread(target=ask)
    thread.start()
    wait_for(lambda: running.service.desk.busy == 1)
    before = running.service.metrics.cancelled._value.get()
    for connection in client._transport._pool.connections:
        connection._connection._network_stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    wait_for(lambda: running.service.desk.idle.is_set() and tiny.engine.is_idle, seconds=5)
    assert running.service.metrics.cancelled._value.get() == before + 1
    thread.join()
    client.close()


def test_who_waits_too_long_is_told(tiny: Dia):
    with Running(tiny, slots=1, queue=4, queue_seconds=0.4) as running:
        body = {"input": f"[S1] {LONG[:120]}", "voice": "S1", "response_format": "pcm"}
        tiny.generate(body["input"], batch_size=1)  # so that nothing is left to compile
        with running.http.stream("POST", "/v1/audio/speech", json=body) as first:
            assert first.status_code == 200
            parts = first.iter_raw()
            next(parts)
            second = httpx.post(f"{running.url}/v1/audio/speech", json={**body, "stream": False}, timeout=60)
            assert sum(map(len, parts)) > 24_000  # the first is served on
        assert second.status_code == 429
        assert second.json()["error"]["code"] == "queue_timeout"
        assert int(second.headers["retry-after"]) >= 1


def test_a_queue_is_told_how_long_it_is():
    desk = Desk(Settings(slots=1, queue=1))
    with pytest.raises(ApiError, match="still loads"), desk.admit():
        pass
    desk.state = "ready"
    with desk.admit() as first:
        first.begin()
        with desk.admit() as second:
            assert (desk.busy, desk.queued, desk.ahead_of(second)) == (1, 1, 0)
            with pytest.raises(ApiError) as caught, desk.admit():
                pass
            assert caught.value.status == 429
            assert caught.value.retry_after == 2  # nothing has been measured yet
        assert not desk.idle.is_set()
    assert desk.idle.is_set()
    tickets = [contextlib.ExitStack() for _ in range(3)]
    for stack in tickets[:2]:
        ticket = stack.enter_context(desk.admit())
        ticket.begin()
        ticket.is_served = True
    tickets[0].close()
    stack = tickets[2]
    stack.enter_context(desk.admit())
    time.sleep(0.5)
    tickets[1].close()  # two left within half a second: one waits, and gets a place within the second
    assert desk.retry_after == 1
    desk.state = "draining"
    with pytest.raises(ApiError, match="about to stop"), desk.admit():
        pass
    stack.close()


def test_sigterm_lets_what_runs_be_finished(tiny: Dia):
    port = _free_port()
    command = [sys.executable, "-m", "dia_jax", "serve", "--port", str(port), "--slots", "2", "--no-warmup", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}" in process.stdout.readline()
    url = f"http://127.0.0.1:{port}"
    with httpx.stream(
        "POST", f"{url}/v1/audio/speech", json={"input": SCRIPT, "seed": 3, "response_format": "pcm_44100"}, timeout=120
    ) as answer:
        parts = answer.iter_raw()
        data = next(parts)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{url}/ready").json()["status"] == "draining")
        refused = httpx.post(f"{url}/v1/audio/speech", json={"input": "Hello."})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        data += b"".join(parts)
    assert data == pcm16(tiny.generate(SCRIPT, seed=3))
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    lines = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    spoken = [line for line in lines if line["path"] == "/v1/audio/speech"]
    assert [line["status"] for line in spoken] == [503, 200]
    assert spoken[1]["seed"] == 3
    assert "Hello" not in errors
    assert "Traceback" not in errors


def test_a_server_can_be_stopped_while_it_compiles(tmp_path: Path):
    port = _free_port()
    command = [sys.executable, "-m", "dia_jax", "serve", "--port", str(port), "--quiet"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        while "Compiling" not in process.stderr.readline():
            assert process.poll() is None
        ready = httpx.get(f"http://127.0.0.1:{port}/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "loading")
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        refused = httpx.post(f"http://127.0.0.1:{port}/v1/audio/speech", json={"input": "Hello."})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path):
    command = [sys.executable, "-m", "dia_jax", "serve", "--port", "0", "--model", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("dia-jax: ")
    assert "Traceback" not in ended.stderr


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


# --- What stands before the routes -----------------------------------------------------------------------------------


def test_slow_headers_and_bodies_are_cut_off(running: Running, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.3)
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.3)
    with socket.create_connection(running.address) as slow:
        slow.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\n")
        assert slow.recv(1000) == b""
    with socket.create_connection(running.address) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = b""
        while not answer.endswith(b'{"status":"ok"}'):
            answer += slow.recv(1000)
        slow.sendall(b"GET /hea")  # a second request on the same connection
        assert slow.recv(1000) == b""
    with socket.create_connection(running.address) as slow:
        slow.sendall(b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_bodies_are_limited_whatever_they_state(running: Running):
    many = b"x" * 100_000
    for headers in ([f"Content-Length: {10**12}"], ["Transfer-Encoding: chunked"]):
        with socket.create_connection(running.address) as client:
            client.settimeout(10)
            lines = ["POST /v1/audio/speech HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            with contextlib.suppress(OSError):
                for _ in range(20):
                    client.sendall(b"%x\r\n" % len(many) + many + b"\r\n")
            answer = b""
            with contextlib.suppress(OSError):
                answer = client.recv(10_000)
            assert b" 413 " in answer
    assert running.http.get("/health").json() == {"status": "ok"}


def test_keys_are_asked_for(tiny: Dia):
    with Running(
        tiny, api_keys=("first-key-123", "second-key-456"), cors_origins=("https://friend.example",)
    ) as running:
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert running.http.get(path).status_code == 200
        for key in (None, "Bearer wrong-key-000", "Basic first-key-123", "Bearer first-key-12", "Bearer"):
            answer = running.http.get("/v1/audio/voices", headers={} if key is None else {"authorization": key})
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
        for key in ("first-key-123", "second-key-456"):
            assert running.http.get("/v1/audio/voices", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert running.http.get("/metrics").status_code == 401
        # Pages of other origins.
        bearer = {"authorization": "Bearer first-key-123"}
        evil = running.http.post("/v1/audio/speech", json={}, headers={**bearer, "origin": "https://evil.example"})
        assert evil.status_code == 403
        friend = running.http.post("/v1/audio/speech", json={}, headers={**bearer, "origin": "https://friend.example"})
        assert friend.status_code == 400  # for its body
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        own = running.http.post("/v1/audio/speech", json={}, headers={**bearer, "origin": running.url})
        assert own.status_code == 400


def test_other_origins_are_not_let_in_by_default(running: Running):
    answer = running.http.get("/v1/audio/voices", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers
    answer = running.http.post("/v1/audio/speech", json={"input": "Hi."}, headers={"origin": "https://evil.example"})
    assert answer.status_code == 403


def test_metrics_and_logs_tell_numbers_but_no_texts(running: Running, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, gate.log.name):
        running.http.post("/v1/audio/speech", json={"input": "Zanzibar.", "max_tokens": 40, "response_format": "wav"})
        wait_for(lambda: caplog.records)  # the line is written when all is sent
    (line,) = [json.loads(record.message) for record in caplog.records]
    assert line["status"] == 200
    assert line["characters"] == 9
    assert line["audio_seconds"] == pytest.approx(40 * 512 / 44_100, abs=0.01)
    assert line["first_audio_seconds"] > 0
    assert "Zanzibar" not in caplog.text
    metrics = running.http.get("/metrics").text
    for name in (
        "dia_slots 2.0",
        "dia_queued_requests 0.0",
        "audio_ttfp_s_bucket",
        "audio_rtf_sum",
        "audio_underrun_s_count",
    ):
        assert name in metrics
    assert 'dia_requests_total{route="/v1/audio/speech",status="200"}' in metrics


def test_the_description_is_complete(running: Running):
    described = running.http.get("/openapi.json").json()
    paths = {
        "/v1/audio/speech", "/v1/audio/dialogue", "/v1/audio/voices", "/v1/audio/voices/{name}", "/v1/models",
        "/v1/audio/models", "/health", "/ready", "/metrics",
    }  # fmt: skip
    assert set(described["paths"]) == paths
    assert "422" not in json.dumps(described)
    for example in described["components"]["schemas"]["SpeechRequest"]["examples"]:
        answer = running.http.post("/v1/audio/speech", json={**example, "max_tokens": 20})
        assert answer.status_code == 200


def test_the_page_asks_no_other_host(running: Running):
    for path, kind in (("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css")):
        answer = running.http.get(path)
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
        assert "https://" not in answer.text
        # A link cannot put anything into it.
        assert (
            running.http.get(path, params={"data": "x", "kind": "text/html", "folder": "x"}).content == answer.content
        )


def test_settings_that_cannot_be_used(tiny: Dia, tmp_path: Path):
    for settings, message in (
        ({"slots": 0}, "slots is 0; it must be 1 or more"),
        ({"drain_seconds": 0}, "drain_seconds is 0"),
        ({"allow_uploads": True}, "give --voices FOLDER"),
        ({"api_keys": ("short",)}, "8 or more"),
        ({"cors_origins": ("*",)}, r"The origin '\*' cannot be used"),
        ({"max_voices": -1}, "max_voices is -1"),
    ):
        with pytest.raises(ServingError, match=message):
            Settings(**settings).check()
    with pytest.raises(ServingError, match="The alias 'S1' is a voice already"):
        Shelf(tiny, Settings(aliases={"S1": "S2"}))
    with pytest.raises(ServingError, match=r"The alias 'x' is for 'y', but the voices are 'S1', 'S2'"):
        Shelf(tiny, Settings(aliases={"x": "y"}))
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ServingError, match="Choose another --port"):
        server.serve(Service(lambda: tiny, Settings()), host="127.0.0.1", port=taken.getsockname()[1], on_ready=print)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--alias", "alloy"], "--alias 'alloy' is not of the form NAME=VOICE"),
        (["--api-keys", "none.txt"], "none.txt"),
        (["--api-keys", "empty.txt"], "empty.txt holds no key"),
        (["--api-keys", "short.txt"], "8 or more ASCII characters"),
        (["--voices", "nowhere"], "nowhere is no folder of voices"),
        (["--allow-uploads"], "give --voices FOLDER"),
        (["--host", "256.0.0.1"], "Cannot listen on 256.0.0.1"),
    ],
)
def test_commands_that_cannot_be_served(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gate, "log_to_stderr", lambda: None)
    Path("empty.txt").write_text("\n")
    Path("short.txt").write_text("abc\n")
    assert run(["serve", "--port", "0", "--no-warmup", "--quiet", *options]) == 2
    assert message in capsys.readouterr().err


def test_keys_are_read_from_lines_and_commas():
    assert read_keys("first-key\n second-key ,third-key\n\n") == ("first-key", "second-key", "third-key")


# --- Formats ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("seconds", [0.0, 0.01, 1.3])
def test_parts_and_wholes_of_any_length(name: str, seconds: float):
    rng = random.Random(7)
    samples = (0.3 * np.sin(np.arange(round(seconds * 44_100)) * 0.03)).astype(np.float32)
    encoder, data, start = Encoder(name, whole=False), b"", 0
    while start < len(samples):
        stop = start + rng.choice((1, 17, 512, 4096))
        data += encoder.encode(samples[start:stop])
        start = stop
    data += encoder.finish()
    whole = Encoder(name, whole=True)
    assert whole.encode(samples) == b""
    if name.startswith("pcm"):
        assert len(data) == 2 * round(len(samples) * FORMATS[name].rate / 44_100)
        assert whole.finish() == data
        return
    for encoded in (data, whole.finish()):
        if name == "wav":
            np.testing.assert_array_equal(soundfile.read(io.BytesIO(encoded), dtype="int16")[0], exact(samples))
        else:
            found, rate = decode(encoded)
            assert rate == FORMATS[name].rate
            assert -2 <= len(found) - len(samples) * rate / 44_100 <= 2 * 1152
