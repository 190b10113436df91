"""The server's replicas behind Ray Serve, by the configuration in the package: two processes, of which one is killed.

Ray runs in processes of its own, started by its command line. Nothing here imports it.
"""

import concurrent.futures
import importlib.resources
import importlib.util
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
import yaml

from dia_jax import Dia
from dia_jax.audio import pcm16

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs pip install 'dia_jax[ray]'"),
]

SCRIPT = "[S1] Hello, how are you today? [S2] I am fine, thank you very much."
SLOTS, QUEUE = 2, 2


def wait_for(condition: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


class Cluster:
    """Ray Serve with two replicas on this machine.

    Attributes:
        url: of the application.
    """

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        config = yaml.safe_load((importlib.resources.files("dia_jax.serving") / "ray.yaml").read_text())
        config["http_options"]["port"] = port
        application = config["applications"][0]
        application["args"] |= {"slots": SLOTS, "queue": QUEUE, "warmup": False}
        (deployment,) = application["deployments"]
        deployment["health_check_period_s"] = 1
        deployment["ray_actor_options"]["runtime_env"]["env_vars"]["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jax")
        (folder / "ray.yaml").write_text(yaml.safe_dump(config))
        self._log = folder / "log"
        # RAY_AUTH_MODE: otherwise a token is written into the home of whoever runs the tests.
        environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(folder)}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [Path(sys.executable).parent / "serve", "run", "--address", "local", folder / "ray.yaml"],
                env={**os.environ, **environment},
                stdout=log,
                stderr=log,
            )

    def wait(self) -> None:
        """Waits until both replicas take requests."""
        end = time.monotonic() + 180
        while len(self.replicas) < 2:
            if self._process.poll() is not None or time.monotonic() > end:
                pytest.fail(self._log.read_text()[-5000:])
            time.sleep(0.5)

    @property
    def replicas(self) -> set[int]:
        """The process of each replica that takes requests."""
        dashboard = re.search(r"dashboard at \S*?(http://[\w.:]+)", self._log.read_text())
        if dashboard is None:
            return set()
        try:
            state = httpx.get(f"{dashboard[1]}/api/serve/applications/", timeout=30).json()
            replicas = state["applications"]["dia"]["deployments"]["Dia"]["replicas"]
        except (httpx.TransportError, json.JSONDecodeError, KeyError):  # it starts
            return set()
        return {replica["pid"] for replica in replicas if replica["state"] == "RUNNING"}

    def speak(self, **fields: Any) -> httpx.Response:
        request = {"input": SCRIPT, "response_format": "wav", **fields}
        return httpx.post(f"{self.url}/v1/audio/speech", json=request, timeout=300)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(60)
        finally:
            self._process.kill()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # The names of Ray's sockets may have 107 characters, for which pytest's folders are too long.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        started = Cluster(Path(folder))
        try:
            started.wait()
            yield started
        finally:
            pids = started.replicas
            started.stop()
        assert pids
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)


def test_each_replica_answers_what_generate_makes(cluster: Cluster):
    wanted = pcm16(Dia.from_pretrained("tiny").generate(SCRIPT, seed=3))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # more than one replica has slots for
        answers = list(pool.map(lambda _: cluster.speak(seed=3), range(4)))
    for answer in answers:
        assert answer.status_code == 200, answer.text
        samples, rate = soundfile.read(io.BytesIO(answer.content), dtype="int16")
        assert rate == 44_100
        np.testing.assert_array_equal(samples, np.frombuffer(wanted, "<i2"))


def test_sound_arrives_while_it_is_made(cluster: Cluster):
    request = {"input": SCRIPT, "seed": 3, "response_format": "pcm_44100"}
    times, parts = [], []
    with httpx.stream("POST", f"{cluster.url}/v1/audio/speech", json=request, timeout=300) as answer:
        for part in answer.iter_raw():
            times.append(time.monotonic())
            parts.append(part)
    assert len(parts) > 2
    assert times[-1] - times[0] > 0.1
    assert b"".join(parts) == pcm16(Dia.from_pretrained("tiny").generate(SCRIPT, seed=3))


def test_a_burst_is_served_or_told_when_to_come_back(cluster: Cluster):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: cluster.speak(seed=seed), range(24)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert SLOTS + QUEUE <= statuses[200] <= 24 - 1
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["code"] == "queue_full"
            assert answer.json()["error"]["type"] == "rate_limit_error"


def test_a_killed_replica_takes_only_its_own_requests_along_and_comes_back(cluster: Cluster):
    before = cluster.replicas
    assert len(before) == 2
    killed = sorted(before)[0]
    when: list[float] = []

    def talk(worker: int) -> list[tuple[float, int]]:
        """Requests, one after the other, until some came after the kill: when each was sent, and its status."""
        said = []
        while not when or len([1 for sent, _ in said if sent > when[0]]) < 3:
            sent = time.monotonic()
            try:
                said.append((sent, cluster.speak(seed=worker, stream=False).status_code))
            except httpx.TransportError:
                said.append((sent, 0))
        return said

    # As many as one replica has places for.
    with concurrent.futures.ThreadPoolExecutor(SLOTS + QUEUE) as pool:
        workers = [pool.submit(talk, worker) for worker in range(SLOTS + QUEUE)]
        time.sleep(2)
        os.kill(killed, signal.SIGKILL)
        when.append(time.monotonic())
        said = [one for worker in workers for one in worker.result()]
    lost = [(sent, status) for sent, status in said if status != 200]
    assert len(lost) <= SLOTS + QUEUE
    for sent, status in lost:
        assert status in (0, 500)  # Ray breaks it off, or says so
        assert sent < when[0], "it was lost, though it was sent after the kill"

    wait_for(lambda: len(cluster.replicas - {killed}) == 2, 120)
    assert len(before & cluster.replicas) == 1
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert {answer.status_code for answer in pool.map(lambda seed: cluster.speak(seed=seed), range(4))} == {200}
