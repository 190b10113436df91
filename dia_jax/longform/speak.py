"""A script of any length -> a recording: plans it, has its chunks made and judged, and joins the best takes.

Everything is decoded by the model's one engine, so chunks and candidates fill a batch together. Knows how voices are
carried from chunk to chunk, and when a chunk is made again. Knows no files; what is kept between two runs is handed in.
"""

import concurrent.futures
import dataclasses
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from dia_jax.alignment import FRAME_RATE, Timing
from dia_jax.codec import Codec
from dia_jax.config import DiaConfig, DiaError, short
from dia_jax.job import Job
from dia_jax.longform.casting import voice_from_parts
from dia_jax.longform.judge import Verdict, judge, place_words
from dia_jax.longform.mastering import check_mastering, normalise, stretch
from dia_jax.longform.plan import Chunk, Pace, plan, whole
from dia_jax.longform.recognise import Recogniser
from dia_jax.longform.recording import Gaps, SpokenTake, join
from dia_jax.longform.script import Script, ScriptLike, Turn
from dia_jax.longform.sound import check_pitch
from dia_jax.longform.speech import Speech, SpokenChunk
from dia_jax.longform.takes import Take, Takes, digest, seed_of
from dia_jax.requests import (
    AudioPrompt,
    VoiceLike,
    check_codes,
    check_count,
    check_seed,
    check_settings,
    check_voice,
    is_recording,
    read_recording,
)
from dia_jax.voice import TAGS, Voice, as_voice, voice_prompt

if TYPE_CHECKING:
    from dia_jax.pipeline import Dia

RATE = 15.0
"""Bytes a second of speech, where no voice says otherwise."""
CONTEXT = 6.0
"""Seconds that the last turn before a chunk may have to be given as context."""
OWN_PROMPT = 8.0
"""Seconds that a voice has which is taken from the speaker's first chunk, at most."""

Carry = Literal["fixed", "context"]


class SpeakError(DiaError):
    """A script and a cast that do not go together, or an option outside its range."""


@dataclasses.dataclass(frozen=True)
class Direction:
    """How a script is spoken; described at `Dia.speak`."""

    carry: Carry = "fixed"
    candidates: int = 1
    retries: int = 2
    seed: int | None = None
    speed: float = 1.0
    loudness: float | None = None
    gaps: Gaps = dataclasses.field(default_factory=Gaps)
    recogniser: Recogniser | None = None
    batch_size: int = 16
    cfg_scale: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    cfg_filter_top_k: int | None = None

    def check(self) -> None:
        """Raises DiaError if an option cannot be used, before any work is done."""
        if self.carry not in ("fixed", "context"):
            raise SpeakError(f'carry is {short(self.carry)}; it must be "fixed" or "context".')
        check_count("candidates", self.candidates)
        check_count("batch_size", self.batch_size)
        if isinstance(self.retries, bool) or not isinstance(self.retries, int) or not 0 <= self.retries <= 100:
            raise SpeakError(f"retries is {short(self.retries)}; it must be a whole number from 0 to 100.")
        if self.seed is not None:
            check_seed(self.seed)
        for name, value in dataclasses.asdict(self.gaps).items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 60:
                raise SpeakError(f"The gap {name} is {short(value)}; it must be 0 to 60 seconds.")
        check_mastering(speed=self.speed, loudness=self.loudness)
        check_pitch()

    @property
    def sampling(self) -> dict[str, Any]:
        """The settings of sampling that are not the model's own."""
        names = ("cfg_scale", "temperature", "top_p", "cfg_filter_top_k")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def direct(options: Mapping[str, Any]) -> Direction:
    """Options by name as a `Direction`.

    Raises:
        SpeakError: one is unknown.
    """
    names = [field.name for field in dataclasses.fields(Direction)]
    if unknown := [name for name in options if name not in names]:
        raise SpeakError(f"There is no option {short(unknown[0])}; there are {', '.join(names)}.")
    return Direction(**options)


def codec_of(dia: "Dia") -> Codec:
    """The model's codec.

    Raises:
        SpeakError: it was loaded without.
    """
    if dia.codec is None:
        raise SpeakError("This needs the codec, but the model was loaded without (load_codec=False).")
    return dia.codec


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan and who speaks in it.

    Attributes:
        script: what is spoken.
        chunks: in order.
        voices: by speaker, as far as they are known; what the judge expects.
        prompts: those of them that are given to the model.
        model: digest of the model that speaks; "" where that is open.
    """

    script: Script
    chunks: tuple[Chunk, ...]
    voices: Mapping[str, Voice]
    prompts: Mapping[str, Voice]
    model: str = ""


def cast(
    config: DiaConfig,
    script: Script,
    voices: Mapping[str, VoiceLike] | None,
    *,
    model_voices: Mapping[str, Voice],
    codec: str | None,
) -> tuple[dict[str, Voice], bool]:
    """Finds everybody's voice.

    Args:
        config: of the model.
        script: may name voices itself.
        voices: by speaker; they count before those of the script.
        model_voices: that come with the model.
        codec: digest of the model's codec; None to leave out whether the voices go with it.

    Returns:
        voices by speaker, and whether they are to be given as prompts: those that the model has for its tags are not.

    Raises:
        SpeakError: a name is unknown, or a speaker has no voice where others have one.
        VoiceError: a voice cannot be read or used.
    """
    if voices is not None and not voices:
        raise SpeakError("The cast is empty; give a voice for each speaker, or leave the cast out.")
    given: dict[str, Any] = {**script.cast, **(voices or {})}
    if unknown := [name for name in given if name not in script.speakers]:
        raise SpeakError(
            f"The cast has a voice for {short(unknown[0])}, who does not speak in the script; it has "
            f"{', '.join(map(short, script.speakers[:10]))}."
        )
    if given:
        found = {name: as_voice(voice) for name, voice in given.items()}
        for turn in script.turns:
            if turn.speaker not in found:
                raise SpeakError(
                    f"At {turn.place}, {short(turn.speaker)} is not in the cast, which has "
                    f"{', '.join(map(short, found))}; give a voice for each speaker."
                )
        if codec is not None:
            for voice in found.values():
                check_voice(voice, codec=codec)
        return found, True
    if not config.speech.tag_voices:
        return {}, True
    if len(script.speakers) > len(TAGS):
        turn = next(turn for turn in script.turns if turn.speaker == script.speakers[len(TAGS)])
        raise SpeakError(
            f"At {turn.place}, {short(turn.speaker)} is the third speaker, and the model has two voices of its own; "
            "give a voice for each speaker."
        )
    names = script.speakers if not set(script.speakers) <= set(TAGS) else TAGS
    return {name: model_voices[tag] for name, tag in zip(names, TAGS, strict=False) if tag in model_voices}, False


def make_plan(
    config: DiaConfig,
    script: Script,
    voices: Mapping[str, Voice],
    prompts: Mapping[str, Voice],
    *,
    carry: Carry,
    rate: float = RATE,
    kept: Sequence[Sequence[Turn]] = (),
) -> Planned:
    """Plans a script, see `plan.plan`."""
    reserve = CONTEXT if carry == "context" else 0.0
    paces = {}
    for name in script.speakers:
        pace = voices[name].rate if name in voices else rate
        # A voice that is still to be taken from the speaker's first chunk needs its room too.
        unknown = not config.speech.tag_voices and name not in prompts
        frames = len(prompts[name].codes) if name in prompts else OWN_PROMPT * FRAME_RATE * unknown
        size = len(prompts[name].text.encode()) + 2 if name in prompts else OWN_PROMPT * pace * unknown
        paces[name] = Pace(pace, math.ceil(frames + reserve * FRAME_RATE), math.ceil(size + reserve * pace))
    return Planned(script, plan(script, paces, config, kept=kept), voices, prompts)


def speak(
    dia: "Dia",
    script: ScriptLike,
    *,
    voices: Mapping[str, VoiceLike] | None = None,
    pronunciations: Mapping[str, str] | None = None,
    direction: Direction,
    takes: Takes | None = None,
    kept: Sequence[Sequence[Turn]] = (),
    own_voices: Mapping[str, Voice] | None = None,
    on_plan: Callable[[Planned], None] | None = None,
    on_voice: Callable[[str, Voice], None] | None = None,
    on_chunk: Callable[[Chunk, str, Take], None] | None = None,
    on_job: Callable[[Job], None] | None = None,
    progress: bool = False,
) -> Speech:
    """Speaks a script of any length, see `Dia.speak`.

    Args:
        direction: the options.
        takes: what was made before, and where takes are kept; None is nothing and nowhere.
        kept: see `plan.plan`.
        own_voices: that were taken from first chunks before.
        on_plan: called with each plan. There is a second one where voices are taken from the first chunks.
        on_voice: called with each voice that is taken from a first chunk.
        on_chunk: called with each chunk, its key in `takes` and its best take, when that is decided.
        on_job: called with each job of the engine. If it raises, or one of the jobs is cancelled by somebody else,
            this ends with that error, and all jobs are cancelled.
    """
    direction.check()
    check_settings(dia.config.sampling, **direction.sampling)
    script = Script.of(script, pronunciations=pronunciations)
    codec = codec_of(dia).digest
    known, are_prompts = cast(dia.config, script, voices, model_voices=dia.voices, codec=codec)
    if are_prompts and not known:
        known = {name: voice for name, voice in (own_voices or {}).items() if name in script.speakers}
    if direction.seed is None:
        direction = dataclasses.replace(direction, seed=secrets.randbits(32))
    planned = make_plan(dia.config, script, known, known if are_prompts else {}, carry=direction.carry, kept=kept)
    planned = dataclasses.replace(planned, model=dia.digest)
    maker = _Maker(dia, direction, takes or Takes(), on_chunk, on_job, progress=progress)
    with maker:
        if are_prompts and set(known) != set(script.speakers):
            planned = _find_voices(dia, planned, maker, direction, on_plan, on_voice)
        if on_plan:
            on_plan(planned)
        best = _make_all(planned, maker, direction)
    return _finish(dia, planned, best, maker, direction)


@dataclasses.dataclass(frozen=True, eq=False)
class FirstTake:
    """What `speak` makes first of a chunk, for those who hear it before it can be judged.

    Attributes:
        chunk: of the plan.
        text: the script of the clip, with the voices' transcripts.
        prompt: int32 [P, C], the voices' codes.
        most_frames: after which it is broken off.
        seed: of the take.
    """

    chunk: Chunk
    text: str
    prompt: np.ndarray
    most_frames: int
    seed: int


def first_takes(
    dia: "Dia", script: ScriptLike, *, voices: Mapping[str, VoiceLike] | None = None, direction: Direction
) -> list[FirstTake]:
    """Plans a script whose chunks are heard as they are made, without a verdict.

    Args:
        dia: the model; it is not run.
        script, voices: see `Dia.speak`.
        direction: with a seed.

    Returns:
        the first take of each chunk; none where a voice would first have to be taken from a finished chunk.

    Raises:
        DiaError: script, cast or an option cannot be used.
    """
    direction.check()
    check_settings(dia.config.sampling, **direction.sampling)
    script = Script.of(script)
    known, are_prompts = cast(dia.config, script, voices, model_voices=dia.voices, codec=codec_of(dia).digest)
    planned = make_plan(dia.config, script, known, known if are_prompts else {}, carry="fixed")
    planned = dataclasses.replace(planned, model=dia.digest)
    if are_prompts and len(planned.chunks) > 1 and set(known) != set(script.speakers):
        return []
    assert direction.seed is not None
    takes = []
    for chunk, count in zip(planned.chunks, _occurrences(planned.chunks), strict=True):
        each = _wanted(planned, chunk, direction, count, None)
        frames = min(chunk.most_frames, dia.config.frame_budget - len(each.prompt))
        takes.append(FirstTake(chunk, each.text, each.prompt, frames, seed_of(direction.seed, each.key, 0, 0)))
    return takes


def judge_clip(
    dia: "Dia", script: ScriptLike, audio: AudioPrompt, *, voices: Mapping[str, VoiceLike] | None = None
) -> Verdict:
    """Judges a clip that is there already, see `Dia.judge`."""
    codec, script = codec_of(dia), Script.of(script)
    known, _ = cast(dia.config, script, voices, model_voices=dia.voices, codec=None)
    codes = None if is_recording(audio) else check_codes(audio, dia.config)
    samples = read_recording(audio, codec.config) if codes is None else codec.decode(codes)
    codes = codec.encode(samples) if codes is None else codes
    paces = {name: Pace(known[name].rate if name in known else RATE) for name in script.speakers}
    chunk = whole(script, paces, dia.config)
    alignment = dia.aligner(chunk.text, codes)
    words = place_words(chunk, alignment, prompt_frames=0)
    rate = codec.config.sample_rate
    return judge(chunk, codes, samples, words, alignment, rate=rate, ended=True, voices=known)


# --- Making takes ----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class _Wanted:
    """A chunk with what stands before it."""

    chunk: Chunk
    before: str
    prompt: np.ndarray
    key: str
    voices: Mapping[str, Voice]

    @property
    def text(self) -> str:
        """The script of the clip, with what stands before it."""
        return f"{self.before} {self.chunk.text}".strip()


class _Maker:
    """Has takes made and judged, and makes again what fails.

    Args:
        dia: whose engine decodes.
        direction: how many, with which seeds and settings.
        takes: what was made before counts, and what is made is added.
    """

    def __init__(
        self,
        dia: "Dia",
        direction: Direction,
        takes: Takes,
        on_chunk: Callable[[Chunk, str, Take], None] | None,
        on_job: Callable[[Job], None] | None,
        *,
        progress: bool,
    ):
        self._dia, self._direction, self._takes = dia, direction, takes
        self._on_chunk, self._on_job = on_chunk, on_job
        self._rate = codec_of(dia).config.sample_rate
        self._jobs: dict[Job, tuple[_Wanted, int, int]] = {}
        self._began, self._made, self._chunks, self._total = time.perf_counter(), 0.0, 0, 0
        self._again: dict[int, int] = {}
        self._samples: dict[tuple[str, int, int], np.ndarray] = {}
        shape = "{desc}[{elapsed}{postfix}]"
        self._bar = tqdm(desc="preparing, compiling if new ", disable=not progress, bar_format=shape)

    def __enter__(self) -> "_Maker":
        return self

    def __exit__(self, *_: Any) -> None:
        for job in self._jobs:
            job.cancel()
        self._bar.close()

    def expect(self, chunks: int) -> None:
        """States how many chunks there are in all, for the progress bar."""
        self._total = chunks

    def make(self, wanted: Sequence[_Wanted]) -> list[Take]:
        """The best take of each chunk."""
        best: dict[str, Take] = {}
        for each in wanted:
            self._go_on(each, best)
        while self._jobs:
            # Waits in turns, for platforms that cannot interrupt a wait.
            concurrent.futures.wait(self._jobs, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED)
            for job in [job for job in self._jobs if job.done()]:
                each, attempt, candidate = self._jobs.pop(job)
                self._takes.add(each.key, self._judge(each, attempt, candidate, job))
                self._go_on(each, best)
            self._show()
        return [best[each.key] for each in wanted]

    def samples(self, key: str, take: Take) -> np.ndarray:
        """A take as sound, float32 [n]."""
        found = self._samples.get((key, take.attempt, take.candidate))
        return self._dia.decode_codes(take.codes) if found is None else found

    def rejected(self, key: str, kept: Take) -> tuple[int, list[dict[str, Any]]]:
        """How many takes there are of a chunk, and why the others were not kept."""
        first = self._takes.first_attempt(key)
        others = [take for (attempt, _), take in sorted(self._takes.of(key).items()) if attempt >= first]
        reasons = [
            {"seed": take.seed, "problems": list(take.verdict.problems) or ["Another take is better."]}
            for take in others
            if take is not kept
        ]
        return len(others), reasons

    def _go_on(self, each: _Wanted, best: dict[str, Take]) -> None:
        """Decides what a chunk needs: nothing while takes of an attempt are still made, another attempt, or no more."""
        first, made = self._takes.first_attempt(each.key), self._takes.of(each.key)
        if any(other.key == each.key for other, *_ in self._jobs.values()):
            return
        for attempt in range(first, first + self._direction.retries + 1):
            missing = [i for i in range(self._direction.candidates) if (attempt, i) not in made]
            if missing:
                if attempt > first:
                    self._again[each.chunk.number] = attempt - first
                for candidate in missing:
                    self._start(each, attempt, candidate)
                return
            here = [made[attempt, i] for i in range(self._direction.candidates)]
            if any(take.verdict.passed for take in here):
                break
        counted = [take for (attempt, _), take in sorted(made.items()) if attempt >= first]
        # Whether it passed, then how well; of equals the first. Scores are as they are kept in files.
        kept = min(counted, key=lambda take: (not take.verdict.passed, round(take.verdict.score, 4)))
        best[each.key] = kept
        self._chunks += 1
        self._samples = {
            name: samples
            for name, samples in self._samples.items()
            if name[0] != each.key or name[1:] == (kept.attempt, kept.candidate)
        }
        if self._on_chunk:
            self._on_chunk(each.chunk, each.key, kept)

    def _start(self, each: _Wanted, attempt: int, candidate: int) -> None:
        assert self._direction.seed is not None
        seed = seed_of(self._direction.seed, each.key, candidate, attempt)
        room = self._dia.config.frame_budget - len(each.prompt)
        job = self._dia.submit(
            each.text,
            audio_prompt=each.prompt if len(each.prompt) else None,
            max_tokens=min(each.chunk.most_frames, room),
            seed=seed,
            batch_size=self._direction.batch_size,
            owner=self,
            **self._direction.sampling,
        )
        self._jobs[job] = each, attempt, candidate
        if self._on_job:
            self._on_job(job)

    def _judge(self, each: _Wanted, attempt: int, candidate: int, job: Job) -> Take:
        assert self._direction.seed is not None
        samples, codes, chunk = job.result(), job.codes, each.chunk
        seed = seed_of(self._direction.seed, each.key, candidate, attempt)
        self._made += len(codes) / FRAME_RATE
        if not len(codes):
            nothing = Verdict(("Nothing is heard.",), 100.0, {"ended": 1.0})
            timings = tuple(Timing(0, 0, 0, 0, 0.0) for part in chunk.parts for _ in part.piece.words)
            return Take(attempt, candidate, seed, codes, True, nothing, timings)
        ended = len(codes) < job.request.max_frames
        heard = np.concatenate([each.prompt, codes]) if len(each.prompt) else codes
        alignment = self._dia.aligner(each.text, heard)
        words = place_words(chunk, alignment, prompt_frames=len(each.prompt))
        verdict = judge(chunk, codes, samples, words, alignment, rate=self._rate, ended=ended, voices=each.voices)
        if self._direction.recogniser is not None:
            verdict = self._direction.recogniser.judge(chunk, samples, verdict, rate=self._rate)
        self._samples[each.key, attempt, candidate] = samples
        return Take(attempt, candidate, seed, codes, ended, verdict, tuple(placed.timing for placed in words))

    def _show(self) -> None:
        if not self._made:
            return
        seconds = time.perf_counter() - self._began
        again = f", again: {', '.join(str(n) for n in sorted(self._again))}" if self._again else ""
        self._bar.set_description_str(f"chunk {self._chunks} of {self._total}, {self._made:.0f} s of audio ")
        self._bar.set_postfix_str(f"{self._made / seconds:.2f} x real time{again}")


def _wanted(
    planned: Planned, chunk: Chunk, direction: Direction, occurrence: int, context: tuple[str, str, np.ndarray] | None
) -> _Wanted:
    """A chunk behind its voices' prompts, and behind the turn before it where that is carried too."""
    voices = {tag: planned.prompts[name] for tag, name in chunk.cast.items() if name in planned.prompts}
    before, codes = voice_prompt(voices) if voices else ("", np.zeros((0, 0), np.int32))
    heard = [(tag, voice.text, digest(voice.codes)) for tag, voice in voices.items()]
    said = None
    if context is not None:
        name, said, more = context
        tag = next(tag for tag, other in chunk.cast.items() if other == name)
        before = f"{before} [{tag}] {said}".strip()
        codes = np.concatenate([codes, more]) if codes.size else more
    # Takes do not depend on the chunk's number, so that they stay where chunks before it come or go.
    key = digest(planned.model, chunk.text, heard, said, direction.sampling, direction.seed, occurrence)
    return _Wanted(chunk, before, codes, key, planned.voices)


def _occurrences(chunks: Sequence[Chunk]) -> list[int]:
    """For each chunk how many before it have the same text."""
    seen: dict[tuple[str, tuple], int] = {}
    found = []
    for chunk in chunks:
        name = (chunk.text, tuple(chunk.cast.items()))
        found.append(seen.get(name, 0))
        seen[name] = found[-1] + 1
    return found


def _make_all(planned: Planned, maker: _Maker, direction: Direction) -> list[tuple[_Wanted, Take]]:
    """The best take of each chunk: all at once, or each behind the one before it."""
    occurrences = _occurrences(planned.chunks)
    maker.expect(len(planned.chunks))
    if direction.carry == "fixed":
        wanted = [
            _wanted(planned, chunk, direction, count, None)
            for chunk, count in zip(planned.chunks, occurrences, strict=True)
        ]
        return list(zip(wanted, maker.make(wanted), strict=True))
    best: list[tuple[_Wanted, Take]] = []
    for chunk, count in zip(planned.chunks, occurrences, strict=True):
        each = _wanted(planned, chunk, direction, count, _last_turn(best[-1], chunk) if best else None)
        best.append((each, maker.make([each])[0]))
    return best


def _last_turn(before: tuple[_Wanted, Take], chunk: Chunk) -> tuple[str, str, np.ndarray] | None:
    """The speaker, text and codes of the last turn before a chunk, if its speaker goes on there and it is short."""
    wanted, take = before
    last = wanted.chunk.parts[-1]
    if last.piece.speaker not in chunk.cast.values() or not take.verdict.passed:
        return None
    words = [placed for placed in take.words(wanted.chunk) if placed.part == len(wanted.chunk.parts) - 1]
    if not words or words[0].timing.start >= len(take.codes):
        return None
    codes = take.codes[words[0].timing.start :]
    return (last.piece.speaker, last.piece.spoken, codes) if len(codes) <= CONTEXT * FRAME_RATE else None


# --- Voices from the first chunks ------------------------------------------------------------------------------------


def _find_voices(
    dia: "Dia",
    planned: Planned,
    maker: _Maker,
    direction: Direction,
    on_plan: Callable[[Planned], None] | None,
    on_voice: Callable[[str, Voice], None] | None,
) -> Planned:
    """Takes the voice of each speaker who has none from the first chunk with it, and plans again with these voices."""
    while missing := [name for name in planned.script.speakers if name not in planned.prompts]:
        if on_plan:
            on_plan(planned)
        maker.expect(len(planned.chunks))
        first = next(chunk for chunk in planned.chunks if missing[0] in chunk.cast.values())
        occurrence = _occurrences(planned.chunks)[first.number]
        each = _wanted(planned, first, direction, occurrence, None)
        take = maker.make([each])[0]
        words = take.words(first)
        prompts = dict(planned.prompts)
        for name in missing:
            parts = []
            for number, part in enumerate(first.parts):
                timings = [placed.timing for placed in words if placed.part == number and placed.timing.frames]
                if part.piece.speaker == name and timings:
                    start, end = min(t.start for t in timings), max(t.end for t in timings)
                    parts.append((part.piece.spoken, take.codes[start:end]))
            if parts:
                size = sum(len(text.encode()) for text, _ in parts)
                rate = size * FRAME_RATE / sum(len(codes) for _, codes in parts)
                prompts[name] = voice_from_parts(dia, name, parts, longest=OWN_PROMPT, rate=rate)
        if missing[0] not in prompts:
            raise SpeakError(f"Nothing is heard of {short(missing[0])} in its first chunk; try another seed.")
        if on_voice:
            for name in missing:
                if name in prompts:
                    on_voice(name, prompts[name])
        kept = [[part.piece for part in chunk.parts] for chunk in planned.chunks[: first.number + 1]]
        rate = float(np.mean([voice.rate for voice in prompts.values()]))
        plan_again = make_plan(
            dia.config, planned.script, prompts, prompts, carry=direction.carry, rate=rate, kept=kept
        )
        planned = dataclasses.replace(plan_again, model=planned.model)
    return planned


# --- The recording ---------------------------------------------------------------------------------------------------


def _finish(
    dia: "Dia",
    planned: Planned,
    best: Sequence[tuple[_Wanted, Take]],
    maker: _Maker,
    direction: Direction,
) -> Speech:
    spoken = [SpokenTake(each.chunk, maker.samples(each.key, take), take.words(each.chunk)) for each, take in best]
    samples, turns, chapters, spans = join(
        planned.script, spoken, direction.gaps, rate=codec_of(dia).config.sample_rate
    )
    chunks = []
    for (each, take), (start, end) in zip(best, spans, strict=True):
        count, rejected = maker.rejected(each.key, take)
        chunks.append(SpokenChunk(each.chunk.number, start, end, take.verdict.as_json(), count, rejected))
    speech = Speech(samples, codec_of(dia).config.sample_rate, turns, chapters, tuple(chunks), planned.script.title)
    return master(speech, direction)


def master(speech: Speech, direction: Direction) -> Speech:
    """Gives a recording its tempo and loudness."""
    if direction.speed != 1:
        speech = _at_speed(speech, stretch(speech.samples, rate=speech.rate, speed=direction.speed), direction.speed)
    if direction.loudness is not None:
        samples, _ = normalise(speech.samples, rate=speech.rate, loudness=direction.loudness)
        speech = dataclasses.replace(speech, samples=samples)
    return speech


def _at_speed(speech: Speech, samples: np.ndarray, speed: float) -> Speech:
    """The same with other samples, and all times divided by the speed."""

    def scaled(thing: Any, **more: Any) -> Any:
        times = {name: getattr(thing, name) / speed for name in ("start", "end") if hasattr(thing, name)}
        return dataclasses.replace(thing, **times, **more)

    turns = tuple(scaled(turn, words=tuple(map(scaled, turn.words))) for turn in speech.turns)
    return dataclasses.replace(
        speech,
        samples=samples,
        turns=turns,
        chapters=tuple(map(scaled, speech.chapters)),
        chunks=tuple(map(scaled, speech.chunks)),
    )
