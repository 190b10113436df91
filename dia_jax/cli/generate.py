"""The command generate: speaks scripts.

Knows options, where scripts come from, and what is printed; `Dia` does the work.
"""

import contextlib
import dataclasses
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import tyro

from dia_jax.cli.common import Dtype, Positional, load_model, say
from dia_jax.config import DiaError, SamplingSettings, Variant
from dia_jax.files import read_text_file
from dia_jax.hub import TINY, resolve
from dia_jax.model import Quantize
from dia_jax.text import encode_text

MAX_SCRIPT_BYTES = 1_000_000
"""Of a file or of standard input: a thousand times what the model takes, so that more can be no script."""

MAX_PROMPT_SECONDS = 60.0
"""Longer voice prompts are refused before they are decoded; the model itself takes 35 s, some of it for new speech."""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Speak scripts.

    A script begins with [S1], alternates [S1] and [S2], and may contain sounds such as (laughs), (sighs) or (coughs).
    Scripts of 5 to 20 seconds sound best. End with the other speaker's tag, or the last word is cut.

    Try:

    dia-jax generate "[S1] Hello, how are you today? [S2] I am fine, thank you. (whistles)" --output hello.wav --picture

    dia-jax generate "[S1] Hello there. [S2] Hi! (laughs) [S1]" --model nari-labs/Dia-1.6B-0626

    dia-jax generate --file scene1.txt scene2.txt --model nari-labs/Dia-1.6B-0626 --output scene.flac --seed 7

    echo "[S1] Did you find the camera? [S2] I found the box." | dia-jax generate --output pipe.mp3

    dia-jax generate "[S1] Where is the tiger? [S2] Behind the door!" --stream --output - | aplay -f S16_LE -r 44100

    dia-jax generate "[S1] What I say next, in the same voice." --audio-prompt me.wav --prompt-text "[S1] What I say in
    me.wav." --model nari-labs/Dia-1.6B-0626
    """

    text: Positional[tuple[str, ...]] = ()
    """Scripts. Without any, and without --file, one script is read from standard input."""
    file: tuple[Path, ...] = ()
    """Files with one script each, in UTF-8."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("dia.wav")
    """Where to write: .wav, .flac, .ogg or .mp3. Several scripts are numbered: dia-1.wav, dia-2.wav, ..."""
    stream: bool = False
    """Write the sound while it is made: to a .wav file that grows, or with --output - as 16-bit mono PCM at 44.1 kHz,
    for a player."""
    picture: bool = False
    """Draw each clip's spectrogram with the script below it, into a .png next to it."""
    model: str = TINY
    """A hub repo such as nari-labs/Dia-1.6B-0626, or a local directory or file in any layout; tiny is the small
    demonstration voice in the package."""
    codec: str | None = None
    """The same for DAC; by default the model's own dac/ folder, or descript/dac_44khz."""
    audio_prompt: Path | None = None
    """A recording of 5 to 10 seconds whose voice is continued."""
    prompt_text: str | None = None
    """The transcript of the audio prompt, with its speaker tags; it is prepended to each script."""
    voice: Path | None = None
    """A .voice file to speak with, in place of an audio prompt and its text; dia-jax voice makes one."""
    max_tokens: int | None = None
    """The maximum number of new frames, 86 per second, without the prompt; by default all that fit (35 s with the
    prompt)."""
    cfg_scale: float | None = None
    """How strongly the script guides. The defaults of this and the next three are the model's own; Dia-1.6B's are 3.0,
    1.2, 0.95 and 45."""
    temperature: float | None = None
    """The randomness of each choice; 0 always takes the likeliest token."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability."""
    cfg_filter_top_k: int | None = None
    """Keep this many tokens, the best by the guided logits."""
    seed: int | None = None
    """Makes the result repeatable. Without it each run draws a new seed, and prints its seed."""
    dtype: Dtype | None = None
    """The dtype of the weights; by default float32 on a CPU, float16 on NVIDIA GPUs older than Ampere (T4, V100), and
    bfloat16 elsewhere."""
    quantize: Quantize | None = None
    """Keep the kernels in int8: on a CPU twice as fast for one clip, elsewhere half the memory of bfloat16."""
    adapter: Path | None = None
    """A directory written by dia-jax train --lora-rank, to be merged into the model."""
    variant: Variant | None = None
    """The model's behaviour, where its config states the wrong one."""
    batch_size: int = 8
    """Scripts that a device speaks at the same time; more are faster in total, as far as memory allows."""
    devices_per_clip: int = 1
    """Accelerators that share each clip, which is then faster: 1, 2 or 4. All others speak scripts of their own."""
    truncate: bool = False
    """Cut a script that is too long for the model, instead of refusing it."""
    revision: str | None = None
    """A branch, tag or commit of the model's hub repo."""
    local_files_only: bool = False
    """Use the hub's cache only, without going online."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.audio import read_audio
        from dia_jax.mesh import local_mesh
        from dia_jax.pipeline import DEFAULT_REPO, SAMPLE_RATE
        from dia_jax.requests import check_seed, check_settings
        from dia_jax.voice import Voice

        if self.prompt_text is not None and self.audio_prompt is None:
            raise DiaError("--prompt-text is the transcript of an audio prompt; give --audio-prompt too.")
        if self.voice is not None and self.audio_prompt is not None:
            raise DiaError("--voice and --audio-prompt exclude each other; give one.")
        voice = None if self.voice is None else Voice.load(self.voice)
        # Errors that can be found without the model are reported before its gigabytes are loaded.
        texts = self._texts()
        for text in texts:
            encode_text(text, max_length=sys.maxsize)
        check_settings(SamplingSettings(), self.cfg_scale, self.temperature, self.top_p, self.cfg_filter_top_k)
        seed = self.seed if self.seed is not None else int.from_bytes(os.urandom(4), "little")
        check_seed(seed)
        prompt = None
        if self.audio_prompt is not None:
            samples = read_audio(self.audio_prompt, rate=SAMPLE_RATE, max_seconds=MAX_PROMPT_SECONDS)
            prompt = (samples, SAMPLE_RATE)
        outputs = self._outputs(len(texts))
        if self.model == TINY:
            say(
                f"Speaking with tiny, the small demonstration voice, which makes mistakes ({resolve(TINY)}/README.md "
                f"says which). The real voice, 6.4 GB: --model {DEFAULT_REPO}",
                error=True,
            )
            if any(re.search(r"(?<!\[S)\d", text) for text in texts):
                say("tiny was taught no digits: write numbers in words.", error=True)
        dia = load_model(self, mesh=local_mesh(self.devices_per_clip, most_groups=len(texts)))
        settings: dict[str, Any] = {
            "audio_prompt": prompt,
            "voice": voice,
            "max_tokens": self.max_tokens,
            "cfg_scale": self.cfg_scale,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "cfg_filter_top_k": self.cfg_filter_top_k,
            "seed": seed,
            "truncate": self.truncate,
        }
        if self.stream:
            self._play(dia.stream(texts[0], **settings), seed)
            return
        start = time.perf_counter()
        seconds = []

        def save(index: int, clip: Any) -> None:
            dia.save_audio(outputs[index], clip)
            seconds.append(len(clip) / SAMPLE_RATE)
            with contextlib.suppress(OSError):  # a line that cannot be printed must not end the work on the other clips
                say(f"{outputs[index].absolute()}: {seconds[-1]:.2f} s of audio, seed {seed}")
            if self.picture and len(clip):
                from dia_jax.picture import draw

                draw(outputs[index].with_suffix(".png"), clip, texts[index], rate=SAMPLE_RATE)

        dia.generate(texts, on_clip=save, batch_size=self.batch_size, progress=not self.quiet, **settings)
        took = time.perf_counter() - start
        say(f"{sum(seconds):.2f} s of audio in {took:.1f} s, compiling included: {sum(seconds) / took:.2f} x real time")

    def _texts(self) -> list[str]:
        """The scripts, each with the prompt's transcript prepended."""
        texts = [*self.text, *map(read_script, self.file)]
        if not texts:
            if sys.stdin is None or sys.stdin.isatty():
                raise DiaError("There is no script: give one as an argument, with --file, or on standard input.")
            texts = [_decode_script(sys.stdin.buffer, "standard input")]
        if self.prompt_text is None:
            return texts
        for text in (self.prompt_text, *texts):
            encode_text(text, max_length=sys.maxsize)
        return [f"{self.prompt_text.rstrip()} {text}" for text in texts]

    def _outputs(self, scripts: int) -> list[Path]:
        """The file of each script, after finding out that all of them can be written, pictures included."""
        from dia_jax.audio import check_growable, check_writable
        from dia_jax.picture import check_drawable

        if self.stream:
            if self.picture:
                raise DiaError("--picture shows a whole clip, and --stream writes parts; leave one out.")
            if scripts > 1:
                raise DiaError(f"--stream speaks one script, not {scripts}.")
            if self.output != Path("-"):
                check_growable(self.output)
            return [self.output]
        check_writable(self.output)
        outputs = [self.output]
        if scripts > 1:
            outputs = [self.output.with_stem(f"{self.output.stem}-{i + 1}") for i in range(scripts)]
        for output in outputs:
            check_writable(output)
            if self.picture:
                check_drawable(output.with_suffix(".png"))
        return outputs

    def _play(self, chunks: Iterator[Any], seed: int) -> None:
        """Writes chunks as they come, and reports on standard error how soon and how steadily they came."""
        from dia_jax.audio import growing_wav
        from dia_jax.pipeline import SAMPLE_RATE

        start, heard, first, wait = time.perf_counter(), 0.0, 0.0, 0.0
        to_stdout = self.output == Path("-")
        with contextlib.nullcontext(_write_pcm) if to_stdout else growing_wav(self.output, rate=SAMPLE_RATE) as write:
            try:
                for chunk in chunks:
                    now = time.perf_counter()
                    first = first or now
                    wait = max(wait, now - first - heard)
                    heard += len(chunk) / SAMPLE_RATE
                    write(chunk)
            except BrokenPipeError:  # the player was closed, which ends the generator too
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (or Python complains when it flushes)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{heard:.2f} s of audio were written") from None
        where = "standard output" if to_stdout else self.output.absolute()
        say(f"{where}: {heard:.2f} s of audio, seed {seed}", error=True)
        if heard:
            say(
                f"first sound after {first - start:.2f} s, compiling included; longest wait of a listener {wait:.2f} s",
                error=True,
            )


def read_script(path: Path) -> str:
    """Reads a script from a file.

    Args:
        path: a regular file of at most `MAX_SCRIPT_BYTES`, in UTF-8. A pipe is refused, because it may never end.

    Returns:
        the script, without whitespace at its ends.

    Raises:
        DiaError: the file is missing, not regular, too large or not UTF-8.
    """
    return read_text_file(path, limit=MAX_SCRIPT_BYTES).removeprefix("\ufeff").strip()


def _decode_script(file: BinaryIO, name: str) -> str:
    data = file.read(MAX_SCRIPT_BYTES + 1)
    if len(data) > MAX_SCRIPT_BYTES:
        raise DiaError(f"{name} is longer than {MAX_SCRIPT_BYTES:,} bytes; the model takes about 1,000 at a time.")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DiaError(
            f"{name} is not UTF-8: byte {error.start} is {data[error.start]:#04x}; save it as UTF-8."
        ) from None


def _write_pcm(samples: Any) -> None:
    from dia_jax.audio import pcm16

    sys.stdout.buffer.write(pcm16(samples))
    sys.stdout.buffer.flush()
