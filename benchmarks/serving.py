"""The server, judged by its clients: formats, load, overload, clients that leave, ends, mutated requests, the page.

    pip install -e '.[dev]' -r benchmarks/serving_requirements.txt     # and Debian's chromium, for the page
    python benchmarks/serving.py                           # all of it, on tiny: half an hour on two cores
    python benchmarks/serving.py --only load overload --seed 7

Every check starts `dia-jax serve` as a process of its own and talks to it over the loopback address: with OpenAI's
package, httpx, schemathesis, plain sockets, and Chromium. Only `first` runs the server in this process, to count calls
of the loop. What was said is compared with `Dia.generate` of the same seed. Scripts are made of the sentences of
tiny/open.txt, which were never trained on; scripts and seeds follow from --seed. Writes results/serving-*.json.
"""

import argparse
import asyncio
import base64
import concurrent.futures
import contextlib
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The servers' own place, so that neither they nor this process compile what is there already.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "dia_jax" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import av
import httpx
import numpy as np
import openai
import psutil
from common import RESULTS, machine, table, write_results

from dia_jax import Dia
from dia_jax.audio import pcm16
from dia_jax.untrained import make_untrained

HERE = Path(__file__).parent
RATE = 44_100
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm", "pcm_44100")
CODEC_FRAME = {"mp3": 1152, "aac": 1024, "opus": 960}
SLOTS = 8


# --- The server as a process -----------------------------------------------------------------------------------------


class Server:
    """`dia-jax serve` in a process of its own."""

    def __init__(self, *options: str, seconds: float = 600):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed at the end of the server)
        command = [sys.executable, "-m", "dia_jax", "serve", "--port", str(self.port), "--quiet", *options]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log)
        self.info = psutil.Process(self.process.pid)
        while not self.is_ready:
            if self.process.poll() is not None or time.perf_counter() - began > seconds:
                raise RuntimeError(f"the server did not start: {self.lines[-5:]}")
            time.sleep(0.1)
        self.start_seconds = time.perf_counter() - began

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()

    @property
    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/ready", timeout=5).status_code == 200
        return False

    @property
    def status(self) -> dict[str, Any]:
        return httpx.get(f"{self.url}/ready", timeout=30).json()

    def wait_until_idle(self, seconds: float = 60) -> float:
        """How long it took until nothing was served any more."""
        began = time.perf_counter()
        while (status := self.status)["busy"] + status["queued"]:
            if time.perf_counter() - began > seconds:
                raise RuntimeError(f"the server is not idle after {seconds} s: {status}")
            time.sleep(0.02)
        return time.perf_counter() - began

    @property
    def lines(self) -> list[str]:
        self.log.seek(0)
        return self.log.read().splitlines()

    def resources(self) -> dict[str, int]:
        return {
            "megabytes": self.info.memory_info().rss // 1_000_000,
            "files": self.info.num_fds(),
            "threads": self.info.num_threads(),
        }


def scripts(rng: random.Random, count: int, *, turns: tuple[int, int] = (1, 2)) -> list[str]:
    """Scripts of one or more sentences of open.txt, in random order."""
    lines = (HERE / "tiny" / "open.txt").read_text().splitlines()
    sentences = [part.strip() for line in lines for part in re.split(r"\[S[12]\]", line) if part.strip()]
    made = []
    for _ in range(count):
        first = rng.randrange(2)
        chosen = rng.sample(sentences, rng.randint(*turns))
        made.append(" ".join(f"[S{1 + (first + i) % 2}] {sentence}" for i, sentence in enumerate(chosen)))
    return made


def exact(samples: np.ndarray) -> np.ndarray:
    return np.frombuffer(pcm16(samples), "<i2")


def percentiles(values: list[float]) -> dict[str, float]:
    return {name: round(float(np.percentile(values, q)), 3) for name, q in (("p50", 50), ("p95", 95), ("max", 100))}


# --- Checks ----------------------------------------------------------------------------------------------------------


def formats(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """OpenAI's client, unchanged: every format, streamed, whole and as events."""
    rng = random.Random(args.seed)
    rows = []
    with Server("--slots", str(SLOTS)) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        for script, seed in zip(scripts(rng, 3), rng.sample(range(10**6), 3), strict=True):
            wanted = dia.generate(script, seed=seed)
            for name in FORMATS:
                for way in ("streamed", "whole", "sse"):
                    data, rate, first = _ask(client, script, seed, name, way)
                    rows.append(
                        {"format": name, "way": way, "first_seconds": first, **_compare(data, rate, name, wanted)}
                    )
    lossless = [row for row in rows if row["format"] in ("wav", "flac", "pcm_44100")]
    lossy = [row for row in rows if row["format"] in CODEC_FRAME]
    return {
        "rows": rows,
        "to the bit": f"{sum(row['equal'] for row in lossless)} of {len(lossless)}",
        "lossy: least SNR in dB": {n: min(row["snr"] for row in lossy if row["format"] == n) for n in CODEC_FRAME},
        "lossy: codec frames too long at most": {
            n: {
                way: max(row["frames_more"] for row in lossy if (row["format"], row["way"]) == (n, way))
                for way in ("streamed", "whole")
            }
            for n in CODEC_FRAME
        },
        "first seconds": {
            way: percentiles([row["first_seconds"] for row in rows if row["way"] == way and row["format"] != "flac"])
            for way in ("streamed", "whole")
        },
    }


def _ask(client: openai.OpenAI, script: str, seed: int, name: str, way: str) -> tuple[bytes, int, float]:
    extra: dict[str, Any] = {"seed": seed, "response_format": name}
    if way != "streamed":
        extra["stream"] = way == "sse"
    began, first, parts = time.perf_counter(), 0.0, []
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="S1", input=script, stream_format="sse" if way == "sse" else "audio", extra_body=extra
    ) as answer:
        rate = int(answer.headers["x-sample-rate"])
        for part in answer.iter_bytes():
            first = first or time.perf_counter() - began
            parts.append(part)
    data = b"".join(parts)
    if way == "sse":
        events = [json.loads(line[6:]) for line in data.decode().splitlines() if line]
        assert events[-1]["type"] == "speech.audio.done"
        data = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    return data, rate, round(first, 3)


def _compare(data: bytes, rate: int, name: str, wanted: np.ndarray) -> dict[str, Any]:
    if name in ("pcm", "pcm_44100"):
        samples = np.frombuffer(data, "<i2")
    else:
        with av.open(io.BytesIO(data)) as container:
            frames = list(container.decode(audio=0))
        samples = np.concatenate([frame.to_ndarray().mean(axis=0) for frame in frames])
        if name in CODEC_FRAME:
            samples = samples * 32768.0
    if name in ("wav", "flac", "pcm_44100"):
        return {"equal": bool(np.array_equal(np.round(samples), exact(wanted)))}
    import soxr

    reference = 32768.0 * (wanted if rate == RATE else soxr.resample(wanted, RATE, rate))
    size = CODEC_FRAME.get(name, 512)
    return {"snr": _snr(reference, samples), "frames_more": round((len(samples) - len(reference)) / size, 2)}


def _snr(reference: np.ndarray, samples: np.ndarray) -> float:
    """Signal to difference in dB, at the delay that fits best, in the band that lossy codecs keep."""
    size = 1 << (len(reference) + len(samples)).bit_length()
    spectrum = np.fft.rfft(samples, size) * np.conj(np.fft.rfft(reference, size))
    delay = int(np.argmax(np.fft.irfft(spectrum)[:4096]))
    moved = samples[delay : delay + len(reference)]
    length = min(len(moved), len(reference))
    difference = moved[:length] - reference[:length]
    return round(10 * float(np.log10(np.sum(reference[:length] ** 2.0) / np.sum(difference**2.0))), 1)


def load(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """32 clients at once, against one at a time; each result is compared with its own seed's."""
    rng = random.Random(args.seed + 1)
    count = args.requests
    wishes = list(zip(scripts(rng, count, turns=(1, 3)), rng.sample(range(10**9), count), strict=True))
    ways = [rng.choice(("streamed", "whole")) for _ in wishes]
    alone = wishes[:: max(count // 40, 1)]
    with Server("--slots", str(SLOTS)) as server:
        asyncio.run(_all_at_once(server.url, wishes[:SLOTS], ways, clients=SLOTS))
        began = time.perf_counter()
        asyncio.run(_all_at_once(server.url, alone, ways[:: max(count // 40, 1)], clients=1))
        one = len(alone) / (time.perf_counter() - began)
        began = time.perf_counter()
        results = asyncio.run(_all_at_once(server.url, wishes, ways, clients=32))
        many = count / (time.perf_counter() - began)
        log = [json.loads(line) for line in server.lines if line.startswith("{")]
        metrics = httpx.get(f"{server.url}/metrics").text
    statuses = Counter(status for status, _ in results)
    expected = dia.generate([script for script, _ in wishes], seed=[seed for _, seed in wishes], batch_size=SLOTS)
    equal = sum(data == pcm16(clip) for (_, data), clip in zip(results, expected, strict=True))
    others = [_apart(data, clip) for (_, data), clip in zip(results, expected, strict=True) if data != pcm16(clip)]
    seconds = [line["first_audio_seconds"] for line in log if line.get("audio_seconds")]
    return {
        "requests": count,
        "statuses": dict(statuses),
        "its own seed's samples, to the bit": f"{equal} of {count}",
        "the others: seconds from which they differ, of how many": others,
        "requests a minute, one at a time": round(60 * one, 1),
        "requests a minute, 32 clients": round(60 * many, 1),
        "ratio": round(many / one, 2),
        "first audio behind admission": percentiles(seconds),
        "underruns": re.findall(r"(?m)^audio_(?:underrun_s_sum|underrun_s_count|continuity_ok_total) \S+", metrics),
    }


def _apart(data: bytes, clip: np.ndarray) -> tuple[float, float]:
    """Where two clips of one seed part: rounding depends on a batch's shape, and can decide between equal tokens."""
    samples, wanted = np.frombuffer(data, "<i2"), exact(clip)
    length = min(len(samples), len(wanted))
    differ = np.flatnonzero(samples[:length] != wanted[:length])
    return round((int(differ[0]) if len(differ) else length) / RATE, 2), round(len(wanted) / RATE, 2)


async def _all_at_once(
    url: str, wishes: list[tuple[str, int]], ways: list[str], *, clients: int
) -> list[tuple[int, bytes]]:
    """Each client asks for the next clip when it has one."""
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600)
    results: list[Any] = [None] * len(wishes)
    left = iter(range(len(wishes)))

    async def work() -> None:
        for i in left:
            script, seed = wishes[i]
            extra = {"seed": seed, "response_format": "pcm_44100", "stream": ways[i] == "streamed"}
            try:
                async with client.audio.speech.with_streaming_response.create(
                    model="tts-1", voice="S1", input=script, extra_body=extra
                ) as answer:
                    results[i] = 200, b"".join([part async for part in answer.iter_bytes()])
            except openai.APIStatusError as error:
                results[i] = error.status_code, b""

    await asyncio.gather(*(work() for _ in range(clients)))
    await client.close()
    return results


def first(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """A stream's first sound while the batch is full of others, in calls of the loop behind its slot."""
    from dia_jax.loop import Loop
    from dia_jax.serving import Service, Settings
    from dia_jax.serving.server import serve

    rng = random.Random(args.seed + 2)
    read: Counter[Any] = Counter()
    needed: list[int] = []
    collect = Loop._collect

    def counted(loop: Loop, call: Any) -> None:
        collect(loop, call)
        for job in set(call.jobs) - {None}:
            read[job] += 1
            if job.is_stream and job._sent and job not in known:  # its first frames are handed to the codec
                known.add(job)
                needed.append(read[job])

    known: set[Any] = set()
    Loop._collect = counted
    service = Service(lambda: dia, Settings(slots=SLOTS, queue=64))
    address: list[str] = []
    # The server wants the main thread for its signals; here it has none.
    thread = threading.Thread(
        target=lambda: serve(service, host="127.0.0.1", port=0, on_ready=address.append), daemon=True
    )
    thread.start()
    while not address:
        time.sleep(0.1)
    waits, gaps = [], []
    try:
        others = [(script, seed) for seed, script in enumerate(scripts(rng, 60, turns=(2, 3)))]
        full = threading.Thread(
            target=lambda: asyncio.run(_all_at_once(address[0], others, ["whole"] * 60, clients=2 * SLOTS))
        )
        full.start()
        while service.desk.busy < SLOTS:
            time.sleep(0.01)
        for seed, script in enumerate(scripts(rng, 12)):
            began, last = time.perf_counter(), 0.0
            body = {"input": script, "voice": "S1", "seed": seed, "response_format": "pcm_44100"}
            with httpx.stream("POST", f"{address[0]}/v1/audio/speech", json=body, timeout=300) as answer:
                for _ in answer.iter_raw():
                    now = time.perf_counter()
                    if last:
                        gaps.append(now - last)
                    else:
                        waits.append(now - began)
                    last = now
        full.join()
    finally:
        Loop._collect = collect
    return {
        "streams": len(waits),
        "calls of the loop from the slot to the first frames": dict(Counter(needed)),
        "seconds from request to first sound": percentiles(waits),
        "longest wait between chunks": round(max(gaps), 2),
    }


def overload(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """Ten times the capacity for a minute: 200 or 429, whole, and idle afterwards."""
    rng = random.Random(args.seed + 3)
    texts = scripts(rng, 200)
    with Server("--slots", str(SLOTS), "--queue", "8") as server:
        clients = 10 * (SLOTS + 8)
        asyncio.run(_hammer(server.url, texts, clients=clients, seconds=10))
        server.wait_until_idle(120)
        before = server.resources()
        memory = [before["megabytes"]]
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.wait(5):
                memory.append(server.resources()["megabytes"])

        watching = threading.Thread(target=watch)
        watching.start()
        answers, seconds = asyncio.run(_hammer(server.url, texts, clients=clients, seconds=60))
        is_over.set()
        watching.join()
        idle = server.wait_until_idle(120)
        after = server.resources()
        healthy = httpx.get(f"{server.url}/health").status_code == 200 and server.is_ready
    statuses = Counter(status for status, *_ in answers)
    whole = [(i, data) for status, i, data, _ in answers if status == 200]
    sample = rng.sample(whole, min(len(whole), 40))
    expected = dia.generate([texts[i] for i, _ in sample], seed=[i for i, _ in sample], batch_size=SLOTS)
    retries = [after for status, _, _, after in answers if status == 429]
    right = sum(re.fullmatch("[1-9][0-9]*", after) is not None for after in retries)
    equal = sum(data == pcm16(clip) for (_, data), clip in zip(sample, expected, strict=True))
    return {
        "clients": clients,
        "seconds": round(seconds, 1),
        "statuses": dict(statuses),
        "429 with a whole Retry-After": f"{right} of {len(retries)}",
        "Retry-After": percentiles([float(after) for after in retries]) if retries else {},
        "accepted that are whole (a sample)": f"{equal} of {len(sample)}",
        "idle after seconds": round(idle, 2),
        "healthy": healthy,
        "megabytes every 5 seconds": memory,
        "before": before,
        "after": after,
    }


async def _hammer(
    url: str, texts: list[str], *, clients: int, seconds: float
) -> tuple[list[tuple[int, int, bytes, str]], float]:
    """Clients that ask again as soon as they are answered; refused ones pause for a moment."""
    answers: list[tuple[int, int, bytes, str]] = []
    end, began = time.perf_counter() + seconds, time.perf_counter()
    numbers = iter(range(10**9))
    limits = httpx.Limits(max_connections=clients)

    async def work(client: httpx.AsyncClient) -> None:
        while time.perf_counter() < end:
            i = next(numbers) % len(texts)
            body = {"input": texts[i], "voice": "S1", "seed": i, "response_format": "pcm_44100"}
            answer = await client.post(f"{url}/v1/audio/speech", json=body)
            answers.append(
                (
                    answer.status_code,
                    i,
                    answer.content if answer.status_code == 200 else b"",
                    answer.headers.get("retry-after", ""),
                )
            )
            if answer.status_code != 200:
                await asyncio.sleep(0.5)

    async with httpx.AsyncClient(timeout=600, limits=limits) as client:
        await asyncio.gather(*(work(client) for _ in range(clients)))
    return answers, time.perf_counter() - began


def leavers(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """Clients that leave at random moments: their slots are free again, and nothing is left behind."""
    rng = random.Random(args.seed + 4)
    texts = scripts(rng, 100, turns=(2, 3))
    call_seconds = 17 * _step_seconds(dia)
    with Server("--slots", str(SLOTS), "--queue", "64") as server:
        asyncio.run(_leave(server.url, texts, rng, count=64))
        server.wait_until_idle()
        time.sleep(2)
        before = server.resources()
        free = asyncio.run(_leave(server.url, texts, rng, count=300))
        idle = server.wait_until_idle()
        time.sleep(2)
        after = server.resources()
        cancelled = re.search(r"(?m)^dia_cancelled_total (\S+)", httpx.get(f"{server.url}/metrics").text)
        script = texts[0]
        body = {"input": script, "voice": "S1", "seed": 1, "response_format": "pcm_44100"}
        data = httpx.post(f"{server.url}/v1/audio/speech", json=body, timeout=300).content
    return {
        "clients": 300,
        "cancelled": float(cancelled[1]) if cancelled else 0,
        "a call of the loop, seconds": round(call_seconds, 3),
        "slot free after the client left, seconds": percentiles(free),
        "idle after the last one, seconds": round(idle, 2),
        "before": before,
        "after": after,
        "a clip afterwards is right": data == pcm16(dia.generate(script, seed=1)),
    }


def _step_seconds(dia: Dia) -> float:
    """Seconds of a step with all slots taken."""
    texts = scripts(random.Random(0), SLOTS, turns=(2, 2))
    dia.generate_codes(texts, seed=0, batch_size=SLOTS, max_tokens=120)
    began = time.perf_counter()
    dia.generate_codes(texts, seed=0, batch_size=SLOTS, max_tokens=120)
    return (time.perf_counter() - began) / 136


async def _leave(url: str, texts: list[str], rng: random.Random, *, count: int) -> list[float]:
    """Groups of clients leave at random moments; gives how long each group's slots stayed taken afterwards."""
    free = []
    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=100)) as client:

        async def one() -> None:
            body: dict[str, Any] = {"input": rng.choice(texts), "voice": "S1", "response_format": rng.choice(FORMATS)}
            body["stream"] = rng.random() < 0.7
            with contextlib.suppress(TimeoutError):
                async with (
                    asyncio.timeout(rng.uniform(0.0, 2.5)),
                    client.stream("POST", f"{url}/v1/audio/speech", json=body) as answer,
                ):
                    async for _ in answer.aiter_raw():
                        pass

        left = count
        while left:
            group = min(left, rng.randint(1, 12))
            left -= group
            await asyncio.gather(*(one() for _ in range(group)))
            began = time.perf_counter()
            while True:
                status = (await client.get(f"{url}/ready")).json()
                if not status["busy"] + status["queued"]:
                    break
                await asyncio.sleep(0.005)
            free.append(time.perf_counter() - began)
    return free


def ends(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """SIGTERM under load drains; kill -9 leaves nothing that hinders the next start."""
    rng = random.Random(args.seed + 5)
    wishes = list(zip(scripts(rng, 24), range(24), strict=True))
    with tempfile.TemporaryDirectory() as folder:
        voices = Path(folder)
        dia.voices["S1"].save(voices / "anna.voice")
        options = ("--slots", str(SLOTS), "--voices", str(voices), "--allow-uploads")
        with Server(*options) as server:
            box: list[Any] = []
            thread = threading.Thread(
                target=lambda: box.extend(asyncio.run(_all_at_once(server.url, wishes, ["streamed"] * 24, clients=24)))
            )
            thread.start()
            while server.status["busy"] < SLOTS:
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            began = time.perf_counter()
            time.sleep(0.3)
            refused = httpx.post(f"{server.url}/v1/audio/speech", json={"input": "Hello."})
            code = server.process.wait(120)
            seconds = time.perf_counter() - began
            thread.join()
        expected = dia.generate([s for s, _ in wishes], seed=[s for _, s in wishes], batch_size=SLOTS)
        equal = sum(data == pcm16(clip) for (_, data), clip in zip(box, expected, strict=True))
        with Server(*options) as server:
            thread = threading.Thread(target=lambda: _ignore(server.url, wishes))
            thread.start()
            while server.status["busy"] < SLOTS:
                time.sleep(0.01)
            server.process.kill()
            server.process.wait()
            thread.join()
        with Server(*options) as server:
            again = server.start_seconds
            listed = [voice["id"] for voice in httpx.get(f"{server.url}/v1/audio/voices").json()["voices"]]
    return {
        "SIGTERM: accepted ones that were finished and right": f"{equal} of 24",
        "SIGTERM: exit code": code,
        "SIGTERM: seconds": round(seconds, 1),
        "SIGTERM: a new request": f"{refused.status_code}, Retry-After {refused.headers.get('retry-after')}",
        "kill -9: next start, seconds": round(again, 1),
        "kill -9: voices afterwards": listed,
    }


def _ignore(url: str, wishes: list[tuple[str, int]]) -> None:
    with contextlib.suppress(openai.APIError, httpx.HTTPError):
        asyncio.run(_all_at_once(url, wishes, ["streamed"] * len(wishes), clients=len(wishes)))


# --- Mutated requests ------------------------------------------------------------------------------------------------


def fuzz(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """Mutated requests by schemathesis, and mutated bytes on the socket, against a small model that ends soon."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded

    rng = random.Random(args.seed + 6)
    found: Counter[str] = Counter()
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_untrained(model)
        _shorten(model, positions=96)
        voices = Path(folder) / "voices"
        voices.mkdir()
        options = ("--model", str(model), "--no-warmup", "--slots", "4", "--queue", "64")
        with Server(*options, "--voices", str(voices), "--allow-uploads") as server:
            schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
            operations = [result.ok() for result in schema.get_all_operations()]
            share = args.mutations // 2 // len(operations)
            for operation in operations:

                @seeded(args.seed)
                @settings(
                    max_examples=share,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy())
                def ask(case: Any) -> None:
                    _judge(found, problems, lambda: case.call(timeout=60), repr(case.body)[:200])

                ask()
            bodies = _seeds(server, dia)
            mutated = [_mutated(rng, rng.choice(bodies)) for _ in range(args.mutations - sum(found.values()))]
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                list(
                    pool.map(
                        lambda data: _judge(found, problems, lambda: _raw(server.port, data), repr(data[:200])), mutated
                    )
                )
            alive = server.is_ready
            server.wait_until_idle()
            lines = "\n".join(server.lines)
    return {
        "requests": sum(found.values()),
        "answers (0: closed, or the client gave up on an incomplete request)": dict(sorted(found.items())),
        "500, hangs, tracebacks in answers": problems[:20],
        "tracebacks in the log": lines.count("Traceback"),
        "alive afterwards": alive,
    }


def _shorten(model: Path, *, positions: int) -> None:
    """Fewer positions, so that a clip of random weights, which never ends by itself, is short."""
    path = model / "config.json"
    config = json.loads(path.read_text())
    config["decoder_config"]["max_position_embeddings"] = positions
    path.write_text(json.dumps(config))


def _judge(found: Counter[str], problems: list[str], ask: Callable[[], Any], what: str) -> None:
    try:
        answer = ask()
    except (TimeoutError, httpx.TimeoutException) as error:
        found["hang"] += 1
        problems.append(f"hang: {error}: {what}")
        return
    except Exception as error:
        found[f"closed ({type(error).__name__})"] += 1
        return
    status = answer if isinstance(answer, int) else answer.status_code
    text = "" if isinstance(answer, int) else answer.content[:100_000].decode(errors="replace")
    found[str(status)] += 1
    if status >= 500 or "Traceback" in text or "site-packages" in text:
        problems.append(f"{status}: {text[:200]}: {what}")


def _seeds(server: Server, dia: Dia) -> list[bytes]:
    """Right requests as bytes on the socket, to be damaged."""
    speech = json.dumps(
        {"input": "[S1] Hello there.", "voice": "alloy", "response_format": "wav", "max_tokens": 20, "seed": 1}
    )
    talk = json.dumps(
        {
            "turns": [{"speaker": "A", "text": "Hello. (laughs)", "pause": 0.5}],
            "cast": {"A": "S1"},
            "stream_format": "json",
        }
    )
    flac = (HERE.parent / "tests" / "tiny_teacher.flac").read_bytes()
    boundary = b"x1y2z3"
    form = b""
    for name, value in (("name", b"Anna"), ("ref_text", dia.voices["S1"].text.encode()), ("consent", b"true")):
        form += b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (boundary, name.encode(), value)
    form += b'--%s\r\nContent-Disposition: form-data; name="audio_sample"; filename="x"\r\n\r\n%s\r\n--%s--\r\n' % (
        boundary,
        flac,
        boundary,
    )

    def post(path: str, body: bytes, kind: str) -> bytes:
        lines = ["Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close"]
        return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body

    return [
        post("/v1/audio/speech", speech.encode(), "application/json"),
        post("/v1/audio/dialogue", talk.encode(), "application/json"),
        post("/v1/audio/voices", form, "multipart/form-data; boundary=x1y2z3"),
        b"DELETE /v1/audio/voices/Anna HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
        b"GET /v1/audio/voices HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n",
    ]


def _mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with some bytes changed, cut, doubled or put in, mostly behind the headers."""
    changed = bytearray(data)
    body = data.find(b"\r\n\r\n") + 4
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = (
            rng.randrange(len(changed))
            if rng.random() < 0.3
            else rng.randrange(min(body, len(changed) - 1), len(changed))
        )
        kind = rng.randrange(5)
        if kind == 0:
            changed[place] = rng.randrange(256)
        elif kind == 1:
            del changed[place : place + rng.randint(1, 50)]
        elif kind == 2:
            changed[place:place] = changed[place : place + rng.randint(1, 50)]
        elif kind == 3:
            odd = (
                "\ud800",
                "\u202e",
                "\x00",
                "9" * 400,
                "1e999",
                "NaN",
                "{" * 500,
                "\\ud800",
                "../../etc/passwd",
                "\r\nX: y",
            )
            changed[place:place] = rng.choice(odd).encode(errors="surrogatepass")
        else:
            changed[place:place] = rng.randbytes(rng.randint(1, 20))
        if len(changed) < 2:
            break
    # Most keep a right length, so that the body is read at all.
    if rng.random() < 0.8 and (split := changed.find(b"\r\n\r\n")) > 0:
        head = re.sub(
            rb"Content-Length: *\d+", b"Content-Length: %d" % (len(changed) - split - 4), bytes(changed[:split])
        )
        changed[:split] = head
    return bytes(changed)


def _raw(port: int, data: bytes) -> int:
    """Sends bytes as they are, and gives the status of the answer.

    A request that is complete has to be answered. One whose body is not all there is waited for, and the client gives
    up: 0.
    """
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = re.findall(rb"\r\ncontent-length: *(\d+) *(?=\r\n|$)", head, re.IGNORECASE)
    is_complete = len(lengths) == 1 and int(lengths[0]) <= len(body) and b"chunked" not in head
    with socket.create_connection(("127.0.0.1", port), timeout=60 if is_complete else 0.5) as client:
        client.sendall(data)
        try:
            answer = client.recv(100_000)
        except TimeoutError:
            if is_complete:
                raise
            return 0
        if b"Traceback" in answer or b"site-packages" in answer:
            return 599
        return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def page(dia: Dia, args: argparse.Namespace) -> dict[str, Any]:
    """The page in Chromium, see serving_page.py."""
    from serving_page import drive

    recording = HERE.parent / "tests" / "tiny_teacher.flac"
    with (
        tempfile.TemporaryDirectory() as folder,
        Server("--slots", str(SLOTS), "--voices", folder, "--allow-uploads") as server,
    ):
        return drive(server.url, args.screenshots, recording=recording, text=dia.voices["S1"].text)


CHECKS: dict[str, Callable[[Dia, argparse.Namespace], dict[str, Any]]] = {
    "formats": formats,
    "load": load,
    "first": first,
    "overload": overload,
    "leavers": leavers,
    "ends": ends,
    "fuzz": fuzz,
    "page": page,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="checks to run")
    parser.add_argument("--seed", type=int, default=0, help="of scripts, seeds and mutations")
    parser.add_argument("--requests", type=int, default=300, help="of the load")
    parser.add_argument("--mutations", type=int, default=10_000, help="mutated requests")
    parser.add_argument(
        "--screenshots", type=Path, default=Path(tempfile.gettempdir()) / "dia_jax-page", help="where to"
    )
    args = parser.parse_args()
    dia = Dia.from_pretrained("tiny")
    for name in args.only:
        began = time.perf_counter()
        result = CHECKS[name](dia, args)
        result["took"] = round(time.perf_counter() - began)
        print(f"\n## {name}\n")
        shown = [
            [key, json.dumps(value) if isinstance(value, (dict, list)) else value]
            for key, value in result.items()
            if key != "rows"
        ]
        print(table(["", "seen"], shown), flush=True)
        write_results(RESULTS, f"serving-{name}", {"machine": machine(), "seed": args.seed, **result})


if __name__ == "__main__":
    main()
