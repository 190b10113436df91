"""The commands speak and voice: long scripts into a project folder, and voices from recordings.

Knows options and what is printed; `longform` does the work.
"""

import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dia_jax.cli.common import Dtype, Positional, load_model, say
from dia_jax.config import DiaError, Variant
from dia_jax.hub import TINY
from dia_jax.model import Quantize


@dataclasses.dataclass(frozen=True)
class Speak:
    """Speak a script of any length, with any number of speakers, into a folder.

    The folder gets the recording with title and chapters, subtitles (.srt, .vtt), every word's time (.json), and an
    index.html to listen with. Each chunk is judged, and made again if it fails. Killed at any moment, the same command
    goes on; after a change of one line it makes only that chunk.

    A script, in a text file:

    # My podcast

    ## Hello

    [Anna] Good morning, Ben! (pause 0.5) Did you sleep?

    [Ben] (laughs) Not much.

    Try:

    dia-jax speak script.txt podcast/

    dia-jax voice anna.wav --text "What Anna says in anna.wav, word for word." --output anna.voice

    dia-jax speak script.txt podcast/ --cast Anna=anna.voice Ben=ben.voice --candidates 4 --model
    nari-labs/Dia-1.6B-0626

    dia-jax speak script.txt podcast/ --plan

    dia-jax speak script.txt podcast/ --remake 7
    """

    script: Positional[Path]
    """A text or .json file."""
    folder: Positional[Path]
    """Of the recording and all that it is made of; it is created."""
    cast: tuple[str, ...] = ()
    """The voice of each speaker, as NAME=FILE. Without any, a speaker's voice in the first chunk is kept."""
    voices: Path | None = None
    """A folder of .voice files, named as the speakers are."""
    pronunciations: Path | None = None
    """A file with lines such as: JAX = jacks"""
    plan: bool = False
    """Show the chunks and how long they should take, and make nothing."""
    remake: tuple[int, ...] = ()
    """Numbers of chunks to make anew."""
    candidates: int = 1
    """Takes of each chunk, of which the best is kept."""
    retries: int = 2
    """How often a chunk is made again while no take of it passes."""
    carry: Literal["fixed", "context"] = "fixed"
    """fixed: all chunks at the same time, behind the voices' prompts. context: one after another, behind the last turn
    as well, so that the tone is carried over."""
    check: str | None = None
    """A recogniser as a second judge, such as base.en; needs dia_jax[check]."""
    seed: int | None = None
    """Makes the result repeatable; by default the folder's own."""
    speed: float = 1.0
    """0.25 to 4, at the same pitch; 0.7 to 1.4 sounds natural."""
    loudness: float | None = None
    """In LUFS; -16 is usual for podcasts."""
    turn_gap: float = 0.35
    """Seconds of silence before another speaker, where chunks are joined."""
    same_speaker_gap: float = 0.2
    """The same where a speaker goes on."""
    chapter_gap: float = 1.2
    """The same before a chapter."""
    format: Literal["mp3", "wav", "flac", "ogg"] = "mp3"
    """Of the recording."""
    picture: bool = False
    """Draw recording.png, with words and turns under the spectrogram."""
    model: str = TINY
    """A hub repo such as nari-labs/Dia-1.6B-0626, or a local directory or file; tiny is the voice in the package."""
    codec: str | None = None
    """The same for DAC; by default the model's own dac/ folder, or descript/dac_44khz."""
    cfg_scale: float | None = None
    """How strongly the script guides. The defaults of this and the next three are the model's own."""
    temperature: float | None = None
    """The randomness of each choice."""
    top_p: float | None = None
    """Keep the likeliest tokens up to this probability."""
    cfg_filter_top_k: int | None = None
    """Keep this many tokens."""
    dtype: Dtype | None = None
    """The dtype of the weights; by default what suits the device."""
    quantize: Quantize | None = None
    """Keep the kernels in int8."""
    adapter: Path | None = None
    """A directory written by dia-jax train --lora-rank, to be merged into the model."""
    variant: Variant | None = None
    """The model's behaviour, where its config states the wrong one."""
    batch_size: int = 16
    """Takes that a device makes at the same time."""
    devices_per_clip: int = 1
    """Accelerators that share each clip."""
    revision: str | None = None
    """A branch, tag or commit of the model's hub repo."""
    local_files_only: bool = False
    """Use the hub's cache only, without going online."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.checkpoint import open_checkpoint
        from dia_jax.config import DiaConfig
        from dia_jax.hub import resolve
        from dia_jax.longform.mastering import check_mastering
        from dia_jax.longform.places import read_text
        from dia_jax.longform.project import plan_table, speak_project
        from dia_jax.longform.recognise import Recogniser
        from dia_jax.longform.recording import Gaps
        from dia_jax.longform.script import Script
        from dia_jax.longform.speak import Direction, cast, make_plan
        from dia_jax.longform.words import read_pronunciations
        from dia_jax.mesh import local_mesh
        from dia_jax.picture import check_drawable
        from dia_jax.pipeline import voices_beside

        # Errors that can be found without the model are reported before its gigabytes are loaded.
        entries = read_pronunciations(self.pronunciations) if self.pronunciations else None
        script = Script.read(self.script, pronunciations=entries)
        direction = Direction(
            carry=self.carry,
            candidates=self.candidates,
            retries=self.retries,
            seed=self.seed,
            speed=self.speed,
            loudness=self.loudness,
            gaps=Gaps(self.turn_gap, self.same_speaker_gap, self.chapter_gap),
            batch_size=self.batch_size,
            cfg_scale=self.cfg_scale,
            temperature=self.temperature,
            top_p=self.top_p,
            cfg_filter_top_k=self.cfg_filter_top_k,
        )
        if not self.plan:  # a plan needs none of the libraries
            direction.check()
        path = resolve(self.model, revision=self.revision, local_files_only=self.local_files_only)
        config = open_checkpoint(path, variant=self.variant).config
        if not isinstance(config, DiaConfig):
            raise DiaError(f"{path} holds a DAC codec, not Dia; pass it as --codec.")
        voices = self._voices(script)
        known, are_prompts = cast(config, script, voices, model_voices=voices_beside(path), codec=None)
        if self.plan:
            prompts = known if are_prompts else {}
            for line in plan_table(make_plan(config, script, known, prompts, carry=self.carry)).splitlines():
                say(line)
            return
        check_mastering(tags=True)
        if self.picture:
            self.folder.mkdir(parents=True, exist_ok=True)
            check_drawable(self.folder / "recording.png")
        if self.check is not None:
            direction = dataclasses.replace(direction, recogniser=Recogniser(self.check))
        dia = load_model(self, mesh=local_mesh(self.devices_per_clip))
        start = time.perf_counter()
        speech = speak_project(
            dia,
            script,
            read_text(self.script),
            self.folder,
            voices=voices,
            direction=direction,
            format=self.format,
            remake=self.remake,
            picture=self.picture,
            progress=not self.quiet,
        )
        took = time.perf_counter() - start
        for chunk in speech.chunks:
            for problem in chunk.verdict["problems"]:
                say(f"chunk {chunk.number}: {problem}", error=True)
        passed = sum(bool(chunk.verdict["passed"]) for chunk in speech.chunks)
        again = "" if passed == len(speech.chunks) else "; listen to the others, and use --remake or --candidates"
        say(f"{passed} of {len(speech.chunks)} chunks passed, {sum(c.takes for c in speech.chunks)} takes{again}")
        say(f"{self.folder.absolute()}/index.html: {speech.seconds:.1f} s of audio in {took:.1f} s")

    def _voices(self, script: Any) -> dict[str, Any] | None:
        """The cast that the options name; None if they name none."""
        from dia_jax.voice import SUFFIX, VoiceError, load_voices

        found: dict[str, Any] = {}
        if self.voices is not None:
            folder = load_voices(self.voices)
            if not folder:
                raise VoiceError(f"{self.voices} holds no {SUFFIX} file; make one with: dia-jax voice")
            found = {name: voice for name, voice in folder.items() if name in script.speakers}
        for entry in self.cast:
            name, sign, file = entry.partition("=")
            if not sign or not name.strip() or not file.strip():
                raise DiaError(f"--cast {entry!r} is not of the form NAME=FILE, such as Anna=anna.voice.")
            found[name.strip()] = file.strip()
        return found or (None if self.voices is None else {})


@dataclasses.dataclass(frozen=True)
class MakeVoice:
    """Make a voice from a recording of 5 to 15 seconds and its transcript.

    The recording is checked: its length, clipping, silence at its ends, and whether it says what the transcript says.

    Try:

    dia-jax voice me.wav --text "What I say in the recording, word for word." --output me.voice

    dia-jax speak script.txt podcast/ --cast Me=me.voice
    """

    recording: Positional[Path]
    """Any format that libsndfile reads; one speaker."""
    text: str
    """What is said in it, word for word."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("my.voice")
    """Where to write the voice."""
    model: str = TINY
    """The model that the voice is for: its codec makes the codes, and it compares recording and transcript."""
    codec: str | None = None
    """The model's codec, where it is elsewhere."""
    dtype: Dtype | None = None
    """The dtype of the weights; by default what suits the device."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.audio import read_audio
        from dia_jax.longform.casting import SECONDS
        from dia_jax.pipeline import SAMPLE_RATE, Dia

        samples = read_audio(self.recording, rate=SAMPLE_RATE, max_seconds=4 * SECONDS[1])
        dia = Dia.from_pretrained(self.model, codec=self.codec, dtype=self.dtype, progress=not self.quiet)
        voice = dia.make_voice((samples, SAMPLE_RATE), self.text, name=self.output.stem)
        voice.save(self.output)
        say(
            f"{self.output.absolute()}: {len(voice.codes) * 512 / SAMPLE_RATE:.1f} s, {voice.rate:.1f} bytes a second, "
            f"pitch {voice.pitch:.0f} Hz, level {voice.level:.0f} dBFS"
        )
