"""A request -> samples: as they are made, or whole and judged.

Knows scripts, casts, the engine's jobs and long scripts. Knows no HTTP and no formats. Everything here is cancelled by
cancelling the task that waits for it, which frees the slots within one call of the loop.
"""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import re
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dia_jax.alignment import FRAME_RATE
from dia_jax.codec import WINDOW
from dia_jax.config import DiaError, short
from dia_jax.job import Job
from dia_jax.longform.judge import place_words
from dia_jax.longform.mastering import frame_power, stretch
from dia_jax.longform.plan import Chunk
from dia_jax.longform.recording import Gaps, silence_before
from dia_jax.longform.script import Script, ScriptLike
from dia_jax.longform.speak import RATE, Direction, first_takes, speak
from dia_jax.longform.speech import Speech
from dia_jax.pipeline import FIRST_FRAMES, SAMPLE_RATE, Dia
from dia_jax.serving.admission import Ticket
from dia_jax.serving.schema import Word
from dia_jax.serving.voices import ShelfVoice
from dia_jax.text import encode_text
from dia_jax.voice import TAGS, Voice, voice_prompt

AHEAD = 2
"""Chunks that are made beside the one that is heard. More would take slots from others without being heard sooner."""
QUIET = -50.0
"""What is taken for silence between the chunks of a stream, in dBFS."""
MAX_SECONDS = 3600
"""Of a recording, as far as can be told before: a whole one is held in memory, 635 MB."""
GAPS = Gaps()


@dataclasses.dataclass(frozen=True)
class Wish:
    """What a client wants to hear, checked.

    Attributes:
        script: what is said; None where `verbatim` is.
        speakers: who says each turn, as the client called them.
        voices: given as prompts: by the script's speaker, or by tag for a verbatim clip; None where the model's own
            speak.
        verbatim: the script of one clip that is spoken exactly as `Dia.generate` would; "" where it is planned.
        seed: of the recording.
        sampling: settings that are not the model's own.
        max_tokens: of one clip.
        candidates, speed: see `Dia.speak`.
    """

    script: Script | None
    speakers: tuple[str, ...]
    voices: Mapping[str, Voice] | None
    verbatim: str
    seed: int
    sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    max_tokens: int | None = None
    candidates: int = 1
    speed: float = 1.0

    @property
    def has_to_be_whole(self) -> bool:
        """Whether nothing can be heard before all of it is made."""
        return self.candidates > 1 or self.speed != 1

    def direction(self, slots: int) -> Direction:
        """The same for `longform`."""
        return Direction(
            candidates=self.candidates, seed=self.seed, speed=self.speed, batch_size=slots, **dict(self.sampling)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Clip:
    """What is decoded as one clip.

    Attributes:
        text: its script, with the voices' transcripts.
        prompt: int32 [P, C] codes of the voices.
        most_frames: None for all that fit.
        gap: seconds of silence before it.
        chunk: of the script; None for a script that is spoken as it stands.
    """

    text: str
    prompt: np.ndarray
    most_frames: int | None
    seed: int
    gap: float = 0.0
    chunk: Chunk | None = None


# --- From a request to what is decoded -------------------------------------------------------------------------------


def wish_of_text(dia: Dia, text: str, voice: ShelfVoice, **options: Any) -> Wish:
    """A text and a voice, as OpenAI's clients send them.

    Text that begins with no tag is spoken by the voice; what it has of Markdown is left out. A script that begins with
    [S1] or [S2] and fits into one clip is spoken as it stands; the voice is that of its first tag, unless it is one
    that the model has for its tags. Any other script is one for `Dia.speak`.

    Raises:
        DiaError: the text cannot be spoken, or not by one voice.
    """
    first = re.match(r"\s*\[(S[12])\]", text)
    tags = set(re.findall(r"\[([^\[\]\n]*)\]", text))
    if first is not None and tags <= set(TAGS) and options.get("candidates", 1) == 1:
        rate = voice.voice.rate if voice.voice else RATE
        prompt = 0 if voice.tag or voice.voice is None else len(voice.voice.codes)
        if prompt / FRAME_RATE + len(text.encode(errors="replace")) / rate <= dia.config.speech.steady_seconds:
            encode_text(text, max_length=dia.config.encoder.max_length, vocab_size=dia.config.encoder.vocab_size)
            return _wish(None, None if voice.tag else {first[1]: voice.voice}, verbatim=text, **options)
    is_script = re.match(r"(?:\s*#[^\n]*\n)*\s*\[[^\[\]\n]+\]", text) or tags & set(TAGS)
    plain = re.sub(r"(?m)^\s*#+\s+|[\[\]]", " ", text)
    script = Script.of(text if is_script else [(voice.tag or TAGS[0], plain)])
    if voice.tag and (len(script.speakers) > 1 or script.speakers[0] in TAGS):
        return _wish(script, None, **options)
    if len(script.speakers) > 1:
        raise DiaError(
            f"The script has {len(script.speakers)} speakers, and {short(voice.name)} is one voice; use "
            "/v1/audio/dialogue with a cast, or one of the model's own voices."
        )
    return wish_of_script(script, {script.speakers[0]: voice}, **options)


def wish_of_script(script: ScriptLike, cast: Mapping[str, ShelfVoice], **options: Any) -> Wish:
    """A script and its cast.

    Where all voices are the model's own, the speakers become its tags, and one who is not in the cast gets the voice
    that is left; otherwise all voices are given as prompts.

    Raises:
        DiaError: script and cast cannot be used, or do not go together.
    """
    if isinstance(script, str) and "[" not in script:  # spoken by one, under its headings
        script = re.sub(r"\A((?:\s*#[^\n]*\n)*)\s*", r"\1[S1] ", script)
    script = Script.of(script)
    if script.cast:
        raise DiaError("The script names voices by their files; name them in the request's field cast.")
    if unknown := [name for name in cast if name not in script.speakers]:
        raise DiaError(f"The cast has a voice for {short(unknown[0])}, who does not speak in the script.")
    if not cast:
        return _wish(script, None, **options)
    tags = {name: voice.tag for name, voice in cast.items()}
    missing = [name for name in script.speakers if name not in cast]
    if all(tags.values()):
        for name in missing:
            free = [tag for tag in TAGS if tag not in tags.values()]
            tags[name] = name if name in TAGS else "".join(free[:1])
    if missing and not all(tags.get(name) for name in missing):
        raise DiaError(f"The cast has no voice for {short(missing[0])}; give each speaker one, or leave the cast out.")
    if all(tags.values()):
        turns = tuple(dataclasses.replace(turn, speaker=tags[turn.speaker]) for turn in script.turns)
        speakers = tuple(turn.speaker for turn in script.turns)
        return _wish(dataclasses.replace(script, turns=turns), None, speakers=speakers, **options)
    if bare := [name for name, voice in cast.items() if voice.voice is None]:
        raise DiaError(
            f"The voice of {short(bare[0])} is made up by the model, and does not go together with voices from "
            "recordings; give all speakers one of a kind."
        )
    return _wish(script, {name: voice.voice for name, voice in cast.items()}, **options)


def _wish(
    script: Script | None,
    voices: Mapping[str, Any] | None,
    *,
    speakers: tuple[str, ...] = (),
    verbatim: str = "",
    seed: int | None = None,
    **options: Any,
) -> Wish:
    if script is not None and not speakers:
        speakers = tuple(turn.speaker for turn in script.turns)
    return Wish(script, speakers, voices, verbatim, secrets.randbits(32) if seed is None else seed, **options)


def clips_of(dia: Dia, wish: Wish, *, slots: int) -> list[Clip]:
    """What has to be decoded so that a wish can be heard while it is made.

    Returns:
        clips in order, of which a single one has the wish's own seed; none where a voice is first to be taken from a
        finished clip.

    Raises:
        DiaError: it cannot be planned, or a setting cannot be used.
    """
    if wish.script is None:
        before, codes = voice_prompt(wish.voices) if wish.voices else ("", np.zeros((0, 0), np.int32))
        return [Clip(f"{before} {wish.verbatim}" if before else wish.verbatim, codes, wish.max_tokens, wish.seed)]
    speech = sum(len(turn.spoken.encode()) for turn in wish.script.turns) / RATE
    seconds = speech + sum(turn.pause for turn in wish.script.turns) + wish.script.final_pause
    if seconds > MAX_SECONDS:
        raise DiaError(
            f"The script takes some {seconds:,.0f} s, pauses included; at most {MAX_SECONDS:,} are made. Send it in "
            "parts."
        )
    takes = first_takes(dia, wish.script, voices=wish.voices, direction=wish.direction(slots))
    if len(takes) == 1:
        (take,) = takes
        return [Clip(take.text, take.prompt, wish.max_tokens, wish.seed, chunk=take.chunk)]
    if wish.max_tokens is not None:
        raise DiaError(
            f"max_tokens={wish.max_tokens} limits a single clip, and this script is {len(takes)} of them; leave it out."
        )
    firsts = {chapter.first_turn for chapter in wish.script.chapters}
    clips, before = [], None
    for take in takes:
        gap = silence_before(take.chunk.parts[0], before, firsts, GAPS)
        before = take.chunk.parts[-1].piece.speaker
        clips.append(Clip(take.text, take.prompt, take.most_frames, take.seed, gap, take.chunk))
    return clips


# --- Heard while it is made ------------------------------------------------------------------------------------------


async def parts_of(job: Job, ticket: Ticket) -> AsyncGenerator[np.ndarray]:
    """Yields the samples of a job as they come; it is cancelled if nobody waits for them any more."""
    loop, news, read = asyncio.get_running_loop(), asyncio.Event(), 0
    job.listen(_waker(loop, news.set))
    try:
        while True:
            news.clear()
            is_done = job.done()
            if job.has_slot:
                ticket.begin()
            while read < len(job.parts):
                if len(part := job.parts[read]):
                    yield part
                read += 1
            if is_done:
                break
            await news.wait()
        if error := job.exception():
            raise error
    finally:
        job.cancel()


def _waker(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> Callable[[], None]:
    """What other threads can call to have something called in the event loop."""

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(call)

    return wake


async def heard(
    dia: Dia,
    wish: Wish,
    clips: Sequence[Clip],
    ticket: Ticket,
    *,
    slots: int,
    timed: bool,
    at_once: bool = True,
) -> AsyncGenerator[np.ndarray | list[Word]]:
    """Yields the samples of clips as they are made, and after each clip's samples its words, if they are wanted.

    A single clip is what `Dia.generate` gives. Between several ones, silence is cut to the planned gaps.

    Args:
        at_once: whether somebody listens while it is made; then it goes before clips that are wanted whole.
    """
    owner = object()
    jobs: list[Job] = []

    def start() -> None:
        clip = clips[len(jobs)]
        jobs.append(
            dia.submit(
                clip.text,
                audio_prompt=clip.prompt if len(clip.prompt) else None,
                max_tokens=clip.most_frames,
                seed=clip.seed,
                batch_size=slots,
                first_frames=None if not at_once else WINDOW if jobs else FIRST_FRAMES,
                owner=owner,
                **wish.sampling,
            )
        )

    sent = 0
    try:
        for number, clip in enumerate(clips):
            while len(jobs) < min(number + 1 + AHEAD, len(clips)):
                start()
            if clip.gap:
                yield np.zeros(round(clip.gap * SAMPLE_RATE), np.float32)
                sent += round(clip.gap * SAMPLE_RATE)
            trim = _Trim() if len(clips) > 1 else None
            began = sent
            async for part in parts_of(jobs[number], ticket):
                part = trim.push(part) if trim else part
                if len(part):
                    yield part
                    sent += len(part)
            if timed and clip.chunk is not None and len(jobs[number].codes):
                offset = (began - (trim.dropped if trim else 0)) / SAMPLE_RATE
                words = await asyncio.to_thread(_words, dia, clip, jobs[number].codes, offset, wish.speakers)
                yield [_within(word, began / SAMPLE_RATE, sent / SAMPLE_RATE) for word in words]
        if wish.script is not None and wish.script.final_pause:
            yield np.zeros(round(wish.script.final_pause * SAMPLE_RATE), np.float32)
    finally:
        for job in jobs:
            job.cancel()


class _Trim:
    """Cuts silence before and after a clip whose parts come one by one.

    Attributes:
        dropped: samples that were cut before the clip.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self._held = np.zeros(0, np.float32)
        self._is_heard = False

    def push(self, samples: np.ndarray) -> np.ndarray:
        samples = np.concatenate([self._held, samples])
        size = round(0.005 * SAMPLE_RATE)
        loud = np.flatnonzero(frame_power(samples, size=size) > 10 ** (QUIET / 10))
        if not len(loud):
            if self._is_heard:
                self._held = samples
            else:
                self.dropped += len(samples)
            return np.zeros(0, np.float32)
        first = 0 if self._is_heard else int(loud[0]) * size
        last = min((int(loud[-1]) + 1) * size, len(samples))
        self.dropped += first
        self._held, self._is_heard = samples[last:], True
        return samples[first:last]


def _words(dia: Dia, clip: Clip, codes: np.ndarray, offset: float, speakers: Sequence[str]) -> list[Word]:
    """When the words of a finished clip are said, by the model's own attention."""
    assert clip.chunk is not None
    heard = np.concatenate([clip.prompt, codes]) if len(clip.prompt) else codes
    found, before = [], 0.0
    for placed in place_words(clip.chunk, dia.aligner(clip.text, heard), prompt_frames=len(clip.prompt)):
        turn = clip.chunk.parts[placed.part].turn
        start = max(placed.timing.start / FRAME_RATE, before)
        end = max(placed.timing.end / FRAME_RATE, start)
        before = start
        found.append(
            Word(
                text=placed.word.text,
                start=offset + start,
                end=offset + end,
                confidence=placed.timing.confidence,
                speaker=speakers[turn],
                turn=turn,
            )
        )
    return found


def _within(word: Word, begin: float, end: float) -> Word:
    """The same, not before and not after what is heard."""
    return word.model_copy(update={name: min(max(getattr(word, name), begin), end) for name in ("start", "end")})


# --- Whole -----------------------------------------------------------------------------------------------------------


async def whole(
    dia: Dia,
    wish: Wish,
    clips: Sequence[Clip],
    ticket: Ticket,
    *,
    slots: int,
    timed: bool,
    threads: concurrent.futures.Executor,
) -> tuple[np.ndarray, list[Word]]:
    """A recording, and its words if they are wanted.

    A single clip is what `Dia.generate` gives. Several ones, and candidates, are made by `Dia.speak`: they are judged,
    and made again where they fail.
    """
    if len(clips) == 1 and wish.candidates == 1:
        heard_whole = heard(dia, wish, clips, ticket, slots=slots, timed=timed, at_once=False)
        items = [item async for item in heard_whole]
        parts = [item for item in items if isinstance(item, np.ndarray)]
        words = [word for item in items if isinstance(item, list) for word in item]
        samples = np.concatenate([np.zeros(0, np.float32), *parts])
        if wish.speed != 1:
            samples = await asyncio.to_thread(stretch, samples, rate=SAMPLE_RATE, speed=wish.speed)
            words = [
                word.model_copy(update={"start": word.start / wish.speed, "end": word.end / wish.speed})
                for word in words
            ]
        return samples, words
    if wish.max_tokens is not None:
        raise DiaError(f"max_tokens={wish.max_tokens} does not go together with candidates; leave one out.")
    speech = await _spoken(dia, wish, ticket, slots=slots, threads=threads)
    words = [
        Word(**dataclasses.asdict(word), speaker=wish.speakers[turn.number], turn=turn.number)
        for turn in speech.turns
        for word in turn.words
    ]
    return speech.samples, words


async def _spoken(dia: Dia, wish: Wish, ticket: Ticket, *, slots: int, threads: concurrent.futures.Executor) -> Speech:
    """`longform.speak.speak` in a thread, which ends when this is cancelled."""
    assert wish.script is not None
    script = wish.script
    loop, jobs, is_over = asyncio.get_running_loop(), list[Job](), False

    def on_job(job: Job) -> None:
        jobs.append(job)
        if is_over:
            job.cancel()
        job.listen(_waker(loop, lambda: job.has_slot and not is_over and ticket.begin()))

    try:
        return await loop.run_in_executor(
            threads,
            lambda: speak(dia, script, voices=wish.voices, direction=wish.direction(slots), on_job=on_job),
        )
    finally:
        is_over = True
        for job in jobs:
            job.cancel()
