"""What is counted and measured, for Prometheus. Knows no requests."""

import prometheus_client
from prometheus_client import Counter, Gauge, Histogram

from dia_jax.pipeline import SAMPLE_RATE
from dia_jax.serving.admission import Desk
from dia_jax.serving.settings import Settings

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)


class Metrics:
    """The metrics of one server, in a registry of its own."""

    def __init__(self, settings: Settings, desk: Desk):
        self.registry = registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...] = SECONDS) -> Histogram:
            return Histogram(name, text, buckets=buckets, registry=registry)

        Gauge("dia_slots", "Clips that can be decoded at the same time.", registry=registry).set(settings.slots)
        Gauge("dia_busy_requests", "Requests that have a slot.", registry=registry).set_function(lambda: desk.busy)
        Gauge("dia_queued_requests", "Requests that wait.", registry=registry).set_function(lambda: desk.queued)
        self.requests = Counter("dia_requests", "Answers by route and status.", ["route", "status"], registry=registry)
        self.refused = Counter(
            "dia_refused",
            "Requests refused at the gate, at the desk, or after waiting too long.",
            ["reason"],
            registry=registry,
        )
        self.cancelled = Counter("dia_cancelled", "Requests whose clients left.", registry=registry)
        self.queue_wait = histogram("dia_queue_wait_seconds", "From admission to the first slot.")
        self.first_audio = histogram("audio_ttfp_s", "From admission to the first audio sent.")
        self.latency = histogram("audio_e2e_latency_s", "From admission to the last audio sent.")
        self.duration = histogram("audio_duration_s", "Seconds of audio in an answer.")
        self.real_time_factor = histogram(
            "audio_rtf", "Seconds that an answer took over seconds of audio.", (0.05, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 5)
        )
        self.chunk_interval = histogram("audio_chunk_interval_s", "Between two chunks of a stream.")
        self.underrun = histogram("audio_underrun_s", "Silence that a listener of a stream had to hear.")
        self.continuous = Counter("audio_continuity_ok", "Streams without such a silence.", registry=registry)

    @property
    def text(self) -> bytes:
        """In Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)


class Listener:
    """A listener of a stream who plays what was sent, and has to wait where nothing is left."""

    def __init__(self, metrics: Metrics, admitted: float):
        self._metrics, self._admitted = metrics, admitted
        self.first: float | None = None
        self.samples, self.underrun, self._held, self._last, self._played_until = 0, 0.0, 0, 0.0, 0.0

    def hear(self, samples: int, now: float, *, is_sent: bool = True) -> None:
        """Takes note of samples; an encoder may hold some back, which are sent with those that follow."""
        self.samples += samples
        self._held += samples
        if not is_sent or not self._held:
            return
        samples, self._held = self._held, 0
        if self.first is None:
            self.first = self._played_until = now
            self._metrics.first_audio.observe(now - self._admitted)
        else:
            self._metrics.chunk_interval.observe(now - self._last)
            self.underrun += max(now - self._played_until, 0.0)
        self._last = now
        self._played_until = max(self._played_until, now) + samples / SAMPLE_RATE

    @property
    def seconds(self) -> float:
        """Of the audio that was sent."""
        return self.samples / SAMPLE_RATE

    def end(self, now: float, *, is_stream: bool) -> None:
        """Takes note of the end of an answer that was sent whole."""
        seconds, took = self.seconds, now - self._admitted
        self._metrics.latency.observe(took)
        self._metrics.duration.observe(seconds)
        if seconds:
            self._metrics.real_time_factor.observe(took / seconds)
        if is_stream:
            self._metrics.underrun.observe(self.underrun)
            if self.underrun == 0:
                self._metrics.continuous.inc()
