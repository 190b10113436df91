"""class Dia: from a checkpoint and a script to codes and samples.

Joins requests, engine and codec. Knows numpy at its doors: scripts and prompts come in, codes and float32 samples go
out. Nothing here runs once for each step.
"""

import concurrent.futures
import functools
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from dia_jax.alignment import Aligner, Alignment
from dia_jax.audio import write_audio
from dia_jax.checkpoint import DTYPES, CheckpointError, codec_beside, load_params, open_checkpoint
from dia_jax.codec import BATCH, WINDOW, Codec
from dia_jax.config import DacConfig, DiaConfig, DiaError, Variant
from dia_jax.devices import default_dtype, warn_of_idle_accelerator
from dia_jax.engine import Engine
from dia_jax.hub import resolve
from dia_jax.job import Job
from dia_jax.mesh import decode_mesh, mesh_of, place, sharding
from dia_jax.model import Quantize
from dia_jax.requests import (
    AudioPrompt,
    Draft,
    Options,
    Recording,
    Request,
    SettingError,
    VoiceLike,
    check_codes,
    check_count,
    draft_requests,
    is_recording,
    put_voices_before,
    read_recording,
)
from dia_jax.voice import Voice, load_voices

if TYPE_CHECKING:
    from dia_jax.longform.judge import Verdict
    from dia_jax.longform.script import ScriptLike
    from dia_jax.longform.speech import Speech

DEFAULT_REPO = "nari-labs/Dia-1.6B-0626"
DEFAULT_CODEC = "descript/dac_44khz"
SAMPLE_RATE = 44_100

FIRST_FRAMES = 8
"""Frames of a stream's first chunk: a tenth of a second, which takes 33 steps."""


class ClipErrors(DiaError):
    """Some clips of a list cannot be made.

    Raised before anything is generated where arguments are to blame, otherwise when the other clips are finished.

    Attributes:
        errors: what was wrong, by the clip's index in the list.
        results: the finished clips, None for the others.
    """

    def __init__(self, errors: Mapping[int, BaseException], results: list[np.ndarray | None]):
        self.errors, self.results = errors, results
        listed = " ".join(f"[{i}] {error}" for i, error in sorted(errors.items()))
        finished = sum(result is not None for result in results)
        super().__init__(f"{len(errors)} of {len(results)} clips cannot be made, and {finished} are finished. {listed}")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while clips were made.

    Attributes:
        results: the finished clips, None where one is not.
    """

    def __init__(self, results: list[np.ndarray | None]):
        self.results = results
        super().__init__(
            f"{sum(clip is not None for clip in results)} of {len(results)} clips were finished and are kept"
        )


class Dia:
    """A Dia model ready to speak.

    Example:
        dia = Dia.from_pretrained("nari-labs/Dia-1.6B-0626")
        audio = dia.generate("[S1] Hello there. [S2] Hi! (laughs) [S1]", seed=1)
        dia.save_audio("hello.wav", audio)

    Args:
        config: of the model.
        graphdef, params: the model, split by `nnx.split`.
        codec: None to work on codes alone.
        mesh: the devices to decode on, see `from_pretrained`; None is where the
            parameters are.
        voices: that come with the model, by name.

    Attributes:
        params: on the devices of `mesh`.
        mesh: its axes are "data" and "model".
    """

    def __init__(
        self,
        config: DiaConfig,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        *,
        codec: Codec | None = None,
        mesh: Mesh | None = None,
        voices: Mapping[str, Voice] | None = None,
    ):
        self.config = config
        self.graphdef = graphdef
        self.mesh = decode_mesh(config, mesh or mesh_of(params))
        self.params = place(params, self.mesh)
        self.codec = codec
        self.voices = dict(voices or {})
        if codec is not None:
            sizes = (codec.config.num_codebooks, codec.config.codebook_size, codec.config.sample_rate)
            wanted = (config.decoder.num_channels, config.eos_token_id, SAMPLE_RATE)
            if sizes != wanted:
                raise CheckpointError(
                    f"This codec has {sizes[0]} codebooks of {sizes[1]} entries at {sizes[2]} Hz, but the model needs "
                    f"{wanted[0]} of {wanted[1]} at {wanted[2]} Hz."
                )

    @classmethod
    def from_pretrained(
        cls,
        repo_or_dir: str | os.PathLike = DEFAULT_REPO,
        *,
        codec: str | os.PathLike | None = None,
        load_codec: bool = True,
        dtype: str | None = None,
        quantize: Quantize | None = None,
        adapter: str | os.PathLike | None = None,
        variant: Variant | None = None,
        mesh: Mesh | None = None,
        revision: str | None = None,
        cache_dir: str | os.PathLike | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        progress: bool = False,
    ) -> "Dia":
        """Loads Dia, and the codec with it.

        Args:
            repo_or_dir: a hub repo, of which only what is needed is fetched; or a local directory or file, in the
                layout of the reference, of transformers, or our own; or "tiny", the small demonstration voice in the
                package.
            codec: likewise for DAC. By default a `dac/` folder inside the checkpoint's directory, if it has one,
                else `descript/dac_44khz`.
            load_codec: False leaves the codec out; `generate_codes` is all that then works, with codes as prompts.
            dtype: "float32", "bfloat16" or "float16"; by default what suits the device, see `devices.default_dtype`.
            quantize: "int8" keeps the kernels in int8, one scale an output: half the bytes of bfloat16. A checkpoint
                that was converted so is loaded so.
            adapter: a directory that `dia-jax train --lora-rank` wrote; it is merged into the kernels as they are read.
            variant: "0626" or "v0.1", for a checkpoint whose config does not tell its behaviour rightly.
            mesh: the devices to decode on; None is all of this process, each of which decodes clips of its own.
                `jax.make_mesh((2, 4), ("data", "model"))` is two groups of four devices: a group holds one copy of the
                weights, and its devices share each clip, which is then faster. Dia-1.6B allows groups of 1, 2 and 4.
            revision, cache_dir, local_files_only, token: see `hub.resolve`; revision is of the model's repo.
            progress: show progress bars.

        Raises:
            HubError, CheckpointError, ConfigError, MeshError: it cannot be had, read or used; the message says why.

        Warns:
            AcceleratorWarning: a GPU or TPU is there, but JAX computes on the CPU. Once a process.
        """
        warn_of_idle_accelerator()
        if dtype is not None and dtype not in DTYPES:
            raise SettingError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}.")
        if quantize not in (None, "int8"):
            raise SettingError(f'quantize is {quantize!r}; it must be "int8" or None.')
        access = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
        path = resolve(repo_or_dir, revision=revision, **access)
        checkpoint = open_checkpoint(path, variant=variant)
        if not isinstance(checkpoint.config, DiaConfig):
            raise CheckpointError(f"{path} holds a DAC codec, not Dia; pass it as codec=.")
        if codec is not None and not load_codec:
            raise SettingError("A codec is named, but load_codec=False leaves it out.")
        mesh = decode_mesh(checkpoint.config, mesh)
        dtype = dtype or default_dtype(mesh.devices.flat[0])
        loaded = None
        if load_codec:
            codec = codec or codec_beside(path) or DEFAULT_CODEC
            loaded = open_codec(resolve(codec, **access), progress=progress)
        graphdef, params = load_params(
            checkpoint,
            dtype=dtype,
            quantize=quantize,
            adapter=adapter,
            progress=progress,
            sharding=functools.partial(sharding, mesh),
        )
        return cls(checkpoint.config, graphdef, params, codec=loaded, mesh=mesh, voices=voices_beside(path))

    # --- Generating --------------------------------------------------------------------------------------------------

    @overload
    def generate(self, text: str, *, progress: bool = False, **options: Unpack[Options]) -> np.ndarray: ...

    @overload
    def generate(
        self,
        text: Sequence[str],
        *,
        batch_size: int = 8,
        on_clip: Callable[[int, np.ndarray], None] | None = None,
        return_errors: bool = False,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> list[Any]: ...

    def generate(self, text: str | Sequence[str], **options: Any) -> Any:
        """Speaks a script, or any number of them.

        Several threads may call this and `stream` at the same time; their clips are decoded together.

        Args:
            text: a script such as "[S1] Hello. [S2] Hi! (laughs)", or a list of them. With a voice prompt, the prompt's
                transcript comes first in the same script.
            audio_prompt: a voice to continue: a path, a pair (samples, rate), or codes [P, C]. With a list of scripts
                a list, None where a clip has none; a single prompt serves them all.
            voice: a voice to speak with, in place of an audio prompt and its transcript: a `Voice`, its file, or
                {"S1": ..., "S2": ...}. With a list of scripts one for all of them, or a list.
            max_tokens: new frames at most, 86.13 for each second; None is all that fits. It does not count the prompt:
                860 here is 876 in the reference, which counts the start and the delay, and 876 + P with a prompt.
            cfg_scale: how strongly the script guides. This and the next three are the model's own, `config.sampling`,
                where they are None: for Dia-1.6B the reference's 3.0, 1.2, 0.95 and 45.
            temperature: 0 takes the likeliest token each time.
            top_p: in (0, 1].
            cfg_filter_top_k: tokens that stay candidates, chosen by the guided logits.
            seed: an int or key, or a list with one for each clip. A single one is used for each clip as if it were
                alone, so that a clip does not depend on the others. None draws new ones.
            truncate: cut a script that is too long, instead of refusing it.
            batch_size: clips that a device decodes together, those of other threads included. More are faster in all,
                as far as memory goes. The largest number that a running call has asked for counts.
            on_clip: called with the index and result of each clip as soon as it is finished, in the calling thread. If
                it raises, the other clips of the call are cancelled.
            return_errors: a clip of the list that cannot be made leaves its exception in the result, instead of raising
                `ClipErrors`.
            progress: show a progress bar.

        Returns:
            float32 array [n] at 44.1 kHz for a str, a list of them for a list. A clip that ends at once has n = 0.

        Raises:
            DiaError: an argument cannot be used; the message says which, and what could be.
            ClipErrors: some clips of a list cannot be made.
            Interrupted: by Ctrl-C, at once; it holds the finished clips.
        """
        self._codec()  # before anything is generated
        return self._generate(text, sound=True, **options)

    @overload
    def generate_codes(self, text: str, *, progress: bool = False, **options: Unpack[Options]) -> np.ndarray: ...

    @overload
    def generate_codes(
        self,
        text: Sequence[str],
        *,
        batch_size: int = 8,
        on_clip: Callable[[int, np.ndarray], None] | None = None,
        return_errors: bool = False,
        progress: bool = False,
        **options: Unpack[Options],
    ) -> list[Any]: ...

    def generate_codes(self, text: str | Sequence[str], **options: Any) -> Any:
        """`generate` without the codec: int32 array [frames, C] for a str, a list of them for a list.

        The delay is undone and the prompt cut off. Arguments and errors are those of `generate`.
        """
        return self._generate(text, sound=False, **options)

    def stream(
        self,
        text: str,
        *,
        first_frames: int = FIRST_FRAMES,
        max_frames: int = WINDOW,
        **options: Unpack[Options],
    ) -> Iterator[np.ndarray]:
        """Speaks a script and yields its samples as soon as they can exist.

        Joined, they are what `generate` gives for the same seed. A frame can be decoded when its last channel is drawn,
        15 positions after its first, and the ten frames after it on which it depends. Decoding begins when the first
        chunk is asked for, and does not wait for the reader. Closing the generator stops it.

        Args:
            text: one script. The other options are those of `generate`.
            first_frames: size of the first chunk, 86.13 for each second; each further one is twice as long.
            max_frames: where that ends.

        Returns:
            An iterator of float32 arrays [n] at 44.1 kHz.

        Raises:
            DiaError: at once, before the first chunk is asked for.
        """
        self._codec()
        if not isinstance(text, str):
            raise SettingError(f"A stream speaks one script, a string, not {type(text).__name__}.")
        first_frames, max_frames = _check_frames(first_frames, max_frames)
        (draft,) = self._drafts(text, options)
        assert isinstance(draft, Draft)

        def chunks() -> Iterator[np.ndarray]:
            (request,) = self._requests([draft])
            job = self.engine.stream(request, first_frames=first_frames, max_frames=max_frames)
            try:
                yield from job.chunks()
            finally:
                job.cancel()

        return chunks()

    def submit(
        self,
        text: str,
        *,
        sound: bool = True,
        batch_size: int = 8,
        first_frames: int | None = None,
        max_frames: int = WINDOW,
        owner: object = None,
        **options: Unpack[Options],
    ) -> Job:
        """Asks for a clip without waiting for it, for servers and the like.

        Args:
            text: one script. The other options are those of `generate`.
            sound: whether samples are wanted; otherwise codes.
            batch_size: see `generate`.
            first_frames, max_frames: for a clip that is heard while it is made, see `stream`; it goes before whole
                clips. None for a whole clip.
            owner: whose clip it is; where slots are short, owners take turns. None is one of its own.

        Returns:
            A `Job`: a `concurrent.futures.Future` of what `generate` or `generate_codes` gives, whose `chunks` yields
            the parts as they are made. Its `cancel` frees the slot within one call of the loop.

        Raises:
            DiaError: at once, if an argument cannot be used.
        """
        if not isinstance(text, str):
            raise SettingError(f"A job speaks one script, a string, not {type(text).__name__}.")
        if sound:
            self._codec()
        check_count("batch_size", batch_size)
        if first_frames is not None:
            first_frames, max_frames = _check_frames(first_frames, max_frames)
            if not sound:
                raise SettingError("A stream is of samples; leave first_frames out for codes.")
        (request,) = self._requests(self._drafts(text, options))
        if first_frames is None:
            return self.engine.submit(request, sound=sound, batch_size=batch_size, owner=owner)
        return self.engine.stream(
            request, first_frames=first_frames, max_frames=max_frames, batch_size=batch_size, owner=owner
        )

    def warmup(
        self,
        text: str = "[S1] Hello. [S2]",
        *,
        batch_size: int = 1,
        max_tokens: int | None = None,
        audio_prompt: AudioPrompt | None = None,
    ) -> float:
        """Compiles, and keeps, the programs that scripts of about this length need, so that no later call waits.

        Args:
            text: a script. Their lengths are rounded up to 128, 256, 512 or 1024 bytes.
            batch_size: of the calls to come.
            max_tokens: of the calls to come, at most.
            audio_prompt: a voice prompt such as the calls to come will have; lengths are rounded up to 256, 512, 1024,
                2048 or 3072 frames.

        Returns:
            seconds that it took.
        """
        began = time.perf_counter()
        drafts = self._drafts(text, {"max_tokens": max_tokens, "audio_prompt": audio_prompt, "seed": 0})
        (request,) = self._requests(drafts)
        self.engine.compile(request, batch_size=check_count("batch_size", batch_size))
        return time.perf_counter() - began

    @functools.cached_property
    def engine(self) -> Engine:
        """What decodes all clips of this model, whoever asks for them."""
        return Engine(self.graphdef, self.params, self.config, mesh=self.mesh, codec=self.codec)

    def _generate(
        self,
        text: str | Sequence[str],
        *,
        sound: bool,
        batch_size: int = 8,
        on_clip: Callable[[int, np.ndarray], None] | None = None,
        return_errors: bool = False,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        drafts = self._drafts(text, options)
        check_count("batch_size", batch_size)
        results: list[Any] = [None] * len(drafts)
        errors: dict[int, BaseException] = {i: draft for i, draft in enumerate(drafts) if isinstance(draft, DiaError)}
        if errors and not return_errors:
            raise ClipErrors(errors, results)
        # The longest scripts first: their clips end last, and those of one padded size share a batch.
        good = {i: draft for i, draft in enumerate(drafts) if isinstance(draft, Draft)}
        order = sorted(good, key=lambda i: len(good[i].text), reverse=True)
        jobs: dict[Any, int] = {}
        owner = object()
        try:
            with _Progress(len(drafts), self._frame_rate, disable=not progress) as bar:
                for i, request in zip(order, self._requests([good[i] for i in order]), strict=True):
                    jobs[self.engine.submit(request, sound=sound, batch_size=batch_size, owner=owner)] = i
                pending = set(jobs)
                while pending:
                    # Waits in turns, for the sake of the progress bar and of platforms that cannot interrupt a wait.
                    ended, pending = concurrent.futures.wait(
                        pending, timeout=0.2, return_when=concurrent.futures.FIRST_COMPLETED
                    )
                    done = sorted(ended, key=lambda job: jobs[job])
                    for job in done:
                        if error := job.exception():
                            errors[jobs[job]] = error
                        else:
                            results[jobs[job]] = job.result()
                    for job in done:
                        if on_clip is not None and jobs[job] not in errors:
                            on_clip(jobs[job], results[jobs[job]])
                    bar.show(jobs)
        except KeyboardInterrupt:
            for job, i in jobs.items():
                if job.done() and not job.cancelled() and job.exception() is None:
                    results[i] = job.result()
            raise Interrupted(results) from None
        finally:
            for job in jobs:
                job.cancel()
        if isinstance(text, str):
            if errors:
                raise errors[0]
            return results[0]
        if errors and not return_errors:
            raise ClipErrors(errors, results)
        return [errors.get(i, result) for i, result in enumerate(results)]

    def _drafts(self, text: Any, options: Any) -> list[Draft | DiaError]:
        codec = None if self.codec is None else self.codec.config
        if (voice := options.get("voice")) is not None:
            if options.get("audio_prompt") is not None:
                raise SettingError("A voice and an audio prompt exclude each other; give one.")
            text, prompts = put_voices_before(text, voice, codec=self._codec().digest)
            options = {**options, "audio_prompt": prompts}
        return draft_requests(text, self.config, codec, **{k: v for k, v in options.items() if k != "voice"})

    def _requests(self, drafts: Sequence[Any]) -> Iterator[Request]:
        """Encodes voice prompts as they are needed, several recordings in a batch, each once."""
        known: dict[int, np.ndarray] = {}
        for start in range(0, len(drafts), BATCH):
            group = drafts[start : start + BATCH]
            new = {id(d.prompt): d.prompt.samples for d in group if isinstance(d.prompt, Recording)}
            new = {name: samples for name, samples in new.items() if name not in known}
            if new:
                known |= zip(new, self._codec().encode_all(list(new.values())), strict=True)
            for draft in group:
                yield draft.with_codes(known[id(draft.prompt)] if isinstance(draft.prompt, Recording) else draft.prompt)

    @property
    def _frame_rate(self) -> float:
        return self.codec.config.frame_rate if self.codec else SAMPLE_RATE / DacConfig().hop

    # --- Long scripts ------------------------------------------------------------------------------------------------

    def speak(
        self,
        script: "ScriptLike",
        *,
        voices: Mapping[str, VoiceLike] | None = None,
        pronunciations: Mapping[str, str] | None = None,
        progress: bool = False,
        **options: Any,
    ) -> "Speech":
        """Speaks a script of any length, with any number of speakers, and judges what it made.

        The script is divided into chunks, which are decoded together; each take is judged by what the model attended
        to, by its length, its end, its pitch and its level; the best takes are joined. Needs `dia_jax[long]`.

        Args:
            script: a text such as "[Anna] Hello. [Ben] Hi! (pause 1.5) [Anna] Well?"; pairs (speaker, text); or a
                `longform.Script`, whose docstring has the rules.
            voices: of each speaker, a `Voice` or its file. Without any, a speaker's voice in the first chunk is the
                voice of all that follow, unless the model has a voice for each tag.
            pronunciations: whole words -> spellings.
            progress: show a progress bar.
            carry: "fixed" puts the voices' prompts before each chunk, and all chunks are made at the same time;
                "context" puts the last turn behind them as well, which carries the tone over, one chunk after another.
            candidates: takes of each chunk that are made at the same time, of which the best is kept.
            retries: how often a chunk is made again while none of its takes passes.
            seed: an int; each take's own seed follows from it. None draws one.
            speed: 0.25 to 4, at the same pitch; 0.7 to 1.4 sounds natural.
            loudness: in LUFS, such as -16 for podcasts; None leaves it as it is.
            gaps: silence where chunks are joined, `longform.Gaps`.
            recogniser: a second judge, `longform.Recogniser`; needs `dia_jax[check]`.
            batch_size: see `generate`.
            cfg_scale, temperature, top_p, cfg_filter_top_k: see `generate`.

        Returns:
            the recording, with the time of each turn and word, and a verdict on each chunk.

        Raises:
            DiaError: script, cast or an option cannot be used; the message says which, and where.
        """
        from dia_jax.longform.speak import direct, speak

        return speak(
            self, script, voices=voices, pronunciations=pronunciations, direction=direct(options), progress=progress
        )

    def align(self, text: str, audio: AudioPrompt) -> Alignment:
        """Finds when each word of a script is said, by the model's own attention.

        Args:
            text: all that is said, with its tags [S1] and [S2].
            audio: codes, a path, or a pair (samples, rate); at most 35 s.

        Returns:
            An `Alignment`; its `words` have their times in seconds.

        Raises:
            TextError, AudioError, SettingError, AlignmentError: they cannot be used; the message says why.
        """
        return self.aligner(text, self.encode_audio(audio) if is_recording(audio) else check_codes(audio, self.config))

    def judge(
        self, script: "ScriptLike", audio: AudioPrompt, *, voices: Mapping[str, VoiceLike] | None = None
    ) -> "Verdict":
        """Judges a clip that is there already, as `speak` judges each take.

        Args:
            script: all that is said, by at most two speakers.
            audio: codes, a path, or a pair (samples, rate); at most 35 s.
            voices: that should be heard, by speaker; by default the model's own.

        Returns:
            A `Verdict`; its `problems` are sentences.

        Raises:
            DiaError: script, audio or voices cannot be used; the message says why.
        """
        from dia_jax.longform.speak import judge_clip

        return judge_clip(self, script, audio, voices=voices)

    def make_voice(self, audio: AudioPrompt, text: str, *, name: str = "voice") -> Voice:
        """Makes a voice to speak with, after checking that recording and transcript go together.

        Args:
            audio: a path, a pair (samples, rate), or codes of a clip that came out well; 5 to 15 s of one speaker.
            text: what is said, word for word.
            name: for messages.

        Returns:
            A `Voice`, for `voice=` and `voices=`, and to be saved.

        Raises:
            VoiceError, AudioError, SettingError: the message says what is wrong with the recording or the transcript.
        """
        from dia_jax.longform.casting import make_voice

        return make_voice(self, audio, text, name=name)

    @functools.cached_property
    def digest(self) -> str:
        """Tells models apart: a digest of the first thousand numbers of every weight, the config and the codec."""
        digest = hashlib.sha256(repr(self.config).encode())
        for leaf in jax.tree.leaves(self.params):
            digest.update(np.asarray(leaf.reshape(-1)[:1000]).tobytes())
        if self.codec is not None:
            digest.update(self.codec.digest.encode())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def aligner(self) -> Aligner:
        """What aligns codes and scripts, see `align`."""
        return Aligner(self.graphdef, self.params, self.config, mesh=self.mesh)

    # --- Codes and samples -------------------------------------------------------------------------------------------

    def encode_audio(self, audio: AudioPrompt) -> np.ndarray:
        """Turns a recording into codes.

        Args:
            audio: a path, or a pair (samples, rate); any rate, mono or not.

        Returns:
            int32 [frames, C].

        Raises:
            AudioError: it cannot be read, or is empty or silent.
        """
        codec = self._codec()
        return codec.encode(read_recording(audio, codec.config))

    def decode_codes(self, codes: np.ndarray) -> np.ndarray:
        """Turns codes, int [frames, C], into float32 samples [frames * 512] at 44.1 kHz."""
        codec = self._codec()
        return codec.decode(check_codes(codes, self.config))

    def save_audio(self, path: str | os.PathLike, audio: np.ndarray) -> None:
        """Writes samples [n] at 44.1 kHz to a .wav, .flac, .ogg or .mp3 file; it appears whole or not at all."""
        write_audio(path, audio, rate=SAMPLE_RATE)

    def _codec(self) -> Codec:
        if self.codec is None:
            raise SettingError("This needs the codec, but the model was loaded without (load_codec=False).")
        return self.codec


class _Progress:
    """A progress bar in seconds of audio."""

    def __init__(self, clips: int, frame_rate: float, *, disable: bool):
        shape = "{desc}{n:.1f} s of audio [{elapsed}{postfix}]"
        self._bar = tqdm(desc="preparing, compiling if new", disable=disable, bar_format=shape)
        self._clips, self._frame_rate = clips, frame_rate
        self._began, self._first = 0.0, 0.0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def show(self, jobs: Collection[Job]) -> None:
        seconds = sum(len(job.codes) for job in jobs) / self._frame_rate
        if not seconds:
            return
        if not self._began:  # what came before may have compiled, so it does not count as speed
            self._began, self._first = time.perf_counter(), seconds
            self._bar.set_description_str("speaking ")
        elif seconds > self._first:
            rate = (seconds - self._first) / max(time.perf_counter() - self._began, 1e-6)
            finished = sum(job.done() for job in jobs)
            count = f", {finished} of {self._clips} clips" if self._clips > 1 else ""
            self._bar.set_postfix_str(f"{rate:.2f} x real time{count}")
        self._bar.update(seconds - self._bar.n)


def _check_frames(first_frames: Any, max_frames: Any) -> tuple[int, int]:
    """Sizes of a stream's chunks: the first, and the longest, which is not shorter."""
    first_frames = check_count("first_frames", first_frames)
    return first_frames, max(first_frames, check_count("max_frames", max_frames))


def voices_beside(path: Path) -> dict[str, Voice]:
    """The voices that come with a checkpoint, in its folder `voices/`, by name."""
    folder = (path if path.is_dir() else path.parent) / "voices"
    return load_voices(folder) if folder.is_dir() else {}


def open_codec(path: str | os.PathLike, *, progress: bool = False) -> Codec:
    """Loads a DAC codec from a local directory or file.

    Raises:
        CheckpointError, ConfigError: it cannot be read or used.
    """
    checkpoint = open_checkpoint(Path(path))
    if not isinstance(checkpoint.config, DacConfig):
        raise CheckpointError(f"{path} holds Dia, not a DAC codec.")
    return Codec(checkpoint.config, *load_params(checkpoint, progress=progress))
