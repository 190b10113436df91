"""Samples -> the formats that clients ask for, part by part or as a whole. Knows no model and no HTTP.

wav, flac and pcm_44100 hold exactly the 16-bit samples that `audio.pcm16` gives. mp3, opus, aac and flac are encoded by
FFmpeg's libraries, which PyAV brings along.
"""

import dataclasses
import io
import struct
from typing import Any, Literal

import av
import numpy as np
import soxr

from dia_jax.audio import pcm16
from dia_jax.pipeline import SAMPLE_RATE

FormatName = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "pcm_44100"]

UNKNOWN_SIZE = 0xFFFFFFFF
"""What stands in a .wav header whose length is not known yet; readers then read to the end."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        media_type: of HTTP.
        rate: sample rate in Hz.
        container, codec: FFmpeg's names; "" where nothing is to be encoded.
        bit_rate: in bits a second; 0 where it does not apply.
        options: of the container.
        streams: whether it is streamed unless a client asks for it whole. A FLAC file states its length in its header,
            and libsndfile cannot read one that does not, so that it is streamed only to those who ask.
    """

    media_type: str
    rate: int = SAMPLE_RATE
    container: str = ""
    codec: str = ""
    bit_rate: int = 0
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    streams: bool = True


FORMATS: dict[str, Format] = {
    "mp3": Format("audio/mpeg", container="mp3", codec="libmp3lame", bit_rate=128_000),
    # Opus knows no 44.1 kHz. Pages of 60 ms, so that the first frames need not wait for a second of sound.
    "opus": Format("audio/ogg", 48_000, "ogg", "libopus", 64_000, {"page_duration": "60000"}),
    "aac": Format("audio/aac", container="adts", codec="aac", bit_rate=128_000),
    "flac": Format("audio/flac", container="flac", codec="flac", streams=False),
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm", 24_000),
    "pcm_44100": Format("audio/pcm"),
}


class Encoder:
    """Encodes one recording, mono, in 16 bit.

    Args:
        name: of `FORMATS`.
        whole: whether the result is put together before it is sent, so that its header can state its length.
    """

    def __init__(self, name: str, *, whole: bool):
        self._format, self._whole = FORMATS[name], whole
        self._file = _Appended() if not whole else io.BytesIO()
        self._samples = 0
        self._resampler: Any = None
        if self._format.rate != SAMPLE_RATE:
            self._resampler = soxr.ResampleStream(SAMPLE_RATE, self._format.rate, 1, dtype="float32", quality="VHQ")
        self._container: Any = None
        if self._format.codec:
            form = self._format
            self._container = av.open(self._file, "w", format=form.container, options=dict(form.options))
            stream: Any = self._container.add_stream(form.codec, rate=form.rate, layout="mono")
            if form.bit_rate:
                stream.bit_rate = form.bit_rate
            self._stream = stream
        elif name == "wav":
            self._file.write(_wav_header(UNKNOWN_SIZE))
        self._is_wav = name == "wav"

    def encode(self, samples: np.ndarray) -> bytes:
        """Takes over float samples [n] at 44.1 kHz; gives the bytes that can be sent now, none for a whole."""
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples.astype(np.float32, copy=False))
        self._write(samples)
        return self._sendable()

    def finish(self) -> bytes:
        """Gives the bytes that are left: for a whole, all of them."""
        if self._resampler is not None:
            self._write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._container is not None:
            if not self._samples:  # FFmpeg writes no header before the first frame
                self._write(np.zeros(1, np.float32))
            for packet in self._stream.encode(None):
                self._container.mux(packet)
        self.close()
        if isinstance(self._file, io.BytesIO):
            data = self._file.getvalue()
            if self._is_wav:
                header = _wav_header(2 * self._samples)
                data = header + data[len(header) :]
            return data
        return self._sendable()

    def close(self) -> None:
        """Lets go of the encoder, at the end or after an interruption."""
        if self._container is not None:
            self._container.close()
            self._container = self._stream = None  # with which its threads end

    def _write(self, samples: np.ndarray) -> None:
        if not len(samples):
            return
        data = pcm16(samples)
        if self._container is None:
            self._file.write(data)
        else:
            frame = av.AudioFrame.from_ndarray(np.frombuffer(data, "<i2")[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._format.rate, self._samples
            for packet in self._stream.encode(frame):
                self._container.mux(packet)
        self._samples += len(samples)

    def _sendable(self) -> bytes:
        return self._file.take() if isinstance(self._file, _Appended) else b""


class _Appended:
    """A file that can only grow, so that FFmpeg goes back for nothing."""

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


def _wav_header(size: int) -> bytes:
    """The header of mono 16-bit PCM of `size` bytes."""
    riff = UNKNOWN_SIZE if size == UNKNOWN_SIZE else size + 36
    form = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16)
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + form + b"data" + struct.pack("<I", size)
