"""The command line, `dia-jax`: generate, convert, prepare, train, train-codec, info, make-untrained.

Turns arguments into calls of the library, and its errors into one sentence and an exit code: 0 done, 1 failed,
2 something handed in cannot be used, 130 interrupted. The only place that touches jax's configuration (the cache of
compiled programs).
"""

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from dia_jax.config import DiaError, SamplingSettings, Variant
from dia_jax.hub import TINY, resolve
from dia_jax.text import encode_text

Positional = tyro.conf.Positional
Dtype = Literal["float32", "bfloat16", "float16"]

DESCRIPTION = """Dia in JAX: scripts with two speakers in, recordings out.

Exit codes: 0 done, 1 failed, 2 something handed in cannot be used, 130 interrupted.
"""


@dataclasses.dataclass(frozen=True)
class Generate:
    """Speak scripts.

    A script begins with [S1], alternates [S1] and [S2], and may hold sounds such as (laughs), (sighs) or (coughs).
    5 to 20 seconds a script sound best; the last speaker but one's tag at the very end keeps the last word whole.

    Try:

    dia-jax generate "[S1] Good morning, Laura! [S2] Hello, Peter! (whistles)" --output hello.wav --picture

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
    """Files, each one script in UTF-8."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("dia.wav")
    """Where to write: .wav, .flac, .ogg or .mp3. Several scripts are numbered: dia-1.wav, dia-2.wav, ..."""
    stream: bool = False
    """Write while it is made: a .wav file that grows, or with --output - 16-bit mono PCM at 44.1 kHz for a player."""
    picture: bool = False
    """Draw each clip's spectrogram with the script under it, into a .png beside it."""
    model: str = TINY
    """A hub repo such as nari-labs/Dia-1.6B-0626, or a local directory or file, in any layout; tiny is the small
    demonstration voice in the package."""
    codec: str | None = None
    """Likewise for DAC; by default the model's own dac/ folder, else descript/dac_44khz."""
    audio_prompt: Path | None = None
    """A recording of 5 to 10 seconds whose voice goes on speaking."""
    prompt_text: str | None = None
    """What is said in the audio prompt, with its speaker tags; it is put in front of each script."""
    max_tokens: int | None = None
    """New frames at most, 86 a second, the prompt not counted; by default all that fits (35 s with the prompt)."""
    cfg_scale: float | None = None
    """How strongly the script guides. This and the next three are by default the model's own; Dia-1.6B's are 3.0, 1.2,
    0.95 and 45."""
    temperature: float | None = None
    """0 takes the likeliest token each time."""
    top_p: float | None = None
    """Keeps the likeliest tokens up to this probability."""
    cfg_filter_top_k: int | None = None
    """Keeps this many tokens, the best by the guided logits."""
    seed: int | None = None
    """Makes the result repeatable; without it each run differs, and tells the seed that it drew."""
    dtype: Dtype | None = None
    """Of the weights; by default bfloat16 on an accelerator and float32 on a CPU."""
    quantize: Literal["int8"] | None = None
    """Keep the kernels in int8: on a CPU twice as fast for one clip, elsewhere half the memory of bfloat16."""
    adapter: Path | None = None
    """A directory that dia-jax train --lora-rank made, to be merged into the model."""
    variant: Variant | None = None
    """The model's behaviour, where its config does not tell it rightly."""
    batch_size: int = 8
    """Scripts that are spoken together; more are faster in all, as far as memory goes."""
    truncate: bool = False
    """Cut a script that is too long for the model, instead of refusing it."""
    revision: str | None = None
    """Branch, tag or commit of the model's hub repo."""
    local_files_only: bool = False
    """Use what is in the hub's cache, and do not go online."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.audio import check_growable, check_writable, read_audio
        from dia_jax.picture import check_drawable, draw
        from dia_jax.pipeline import DEFAULT_REPO, SAMPLE_RATE, Dia, check_seed, check_settings

        if self.prompt_text is not None and self.audio_prompt is None:
            raise DiaError("--prompt-text is the transcript of an audio prompt; give --audio-prompt too.")
        # What can be found wrong without the model is told before its gigabytes are loaded.
        texts = self._texts()
        for text in texts:
            encode_text(text, max_length=sys.maxsize)
        check_settings(SamplingSettings(), self.cfg_scale, self.temperature, self.top_p, self.cfg_filter_top_k)
        seed = self.seed if self.seed is not None else int.from_bytes(os.urandom(4), "little")
        check_seed(seed)
        prompt = None
        if self.audio_prompt is not None:
            prompt = (read_audio(self.audio_prompt, rate=SAMPLE_RATE), SAMPLE_RATE)
        outputs = [self.output]
        if self.picture:
            check_drawable()
            if self.stream:
                raise DiaError("--picture shows a whole clip, and --stream writes parts; leave one out.")
        if self.stream:
            if len(texts) > 1:
                raise DiaError(f"--stream speaks one script, not {len(texts)}.")
            if self.output != Path("-"):
                check_growable(self.output)
        else:
            check_writable(self.output)
            if len(texts) > 1:
                outputs = [self.output.with_stem(f"{self.output.stem}-{i + 1}") for i in range(len(texts))]
            for output in outputs:
                check_writable(output)
        if self.model == TINY:
            print(
                f"Speaking with tiny, the small demonstration voice, which knows few words ({resolve(TINY)}/README.md "
                f"lists them). The real voice, 6.4 GB: --model {DEFAULT_REPO}",
                file=sys.stderr,
            )
        dia = Dia.from_pretrained(
            self.model,
            codec=self.codec,
            dtype=self.dtype,
            quantize=self.quantize,
            adapter=self.adapter,
            variant=self.variant,
            revision=self.revision,
            local_files_only=self.local_files_only,
            progress=not self.quiet,
        )
        settings: dict[str, Any] = {
            "audio_prompt": prompt,
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
        began = time.monotonic()
        seconds = []

        def save(index: int, clip: Any) -> None:
            dia.save_audio(outputs[index], clip)
            seconds.append(len(clip) / SAMPLE_RATE)
            tqdm.write(f"{outputs[index].absolute()}: {seconds[-1]:.2f} s of audio, seed {seed}")
            if self.picture and len(clip):
                draw(outputs[index].with_suffix(".png"), clip, texts[index], rate=SAMPLE_RATE)

        dia.generate(texts, on_clip=save, batch_size=self.batch_size, progress=not self.quiet, **settings)
        took = time.monotonic() - began
        print(
            f"{sum(seconds):.2f} s of audio in {took:.1f} s, compiling included: {sum(seconds) / took:.2f} x real time"
        )

    def _play(self, chunks: Iterator[Any], seed: int) -> None:
        """Writes chunks as they come, and tells on standard error how soon and how steadily they came."""
        from dia_jax.audio import growing_wav
        from dia_jax.pipeline import SAMPLE_RATE

        began, heard, first, wait = time.monotonic(), 0.0, 0.0, 0.0
        to_stdout = self.output == Path("-")
        with contextlib.nullcontext(_write_pcm) if to_stdout else growing_wav(self.output, rate=SAMPLE_RATE) as write:
            try:
                for chunk in chunks:
                    now = time.monotonic()
                    first = first or now
                    wait = max(wait, now - first - heard)
                    heard += len(chunk) / SAMPLE_RATE
                    write(chunk)
            except BrokenPipeError:  # the player was closed, and so is the generator
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (or Python complains when it flushes)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(f"{heard:.2f} s of audio were written") from None
        where = "standard output" if to_stdout else self.output.absolute()
        print(f"{where}: {heard:.2f} s of audio, seed {seed}", file=sys.stderr)
        if heard:
            print(
                f"first sound after {first - began:.2f} s, compiling included; longest wait of a listener {wait:.2f} s",
                file=sys.stderr,
            )

    def _texts(self) -> list[str]:
        texts = [*self.text, *(self._read(path) for path in self.file)]
        if not texts:
            if sys.stdin is None or sys.stdin.isatty():
                raise DiaError("There is no script: give one as an argument, with --file, or on standard input.")
            texts = [_decode(sys.stdin.buffer.read(), "standard input").strip()]
        if self.prompt_text is None:
            return texts
        for text in (self.prompt_text, *texts):
            encode_text(text, max_length=sys.maxsize)
        return [f"{self.prompt_text.rstrip()} {text}" for text in texts]

    @staticmethod
    def _read(path: Path) -> str:
        try:
            return _decode(path.read_bytes(), str(path)).strip()
        except OSError as error:
            raise DiaError(f"Cannot read {path}: {error.strerror}.") from None


def _write_pcm(samples: Any) -> None:
    from dia_jax.audio import pcm16

    sys.stdout.buffer.write(pcm16(samples))
    sys.stdout.buffer.flush()


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiaError(
            f"{name} is not UTF-8: byte {error.start} is {data[error.start]:#04x}; save it as UTF-8."
        ) from None


@dataclasses.dataclass(frozen=True)
class Convert:
    """Convert a Dia or DAC checkpoint between layouts.

    Reads the reference's layout (safetensors, .pth, .bin), that of transformers (sharded or not), descript's
    weights.pth and Orbax directories; which one it is, the tensors' names tell.

    Try:

    dia-jax convert Dia-1.6B-0626/ dia-orbax/ --verify

    dia-jax convert weights.pth dia-orbax/dac/ --verify

    dia-jax convert dia-orbax/ dia-transformers/ --layout transformers

    dia-jax convert Dia-1.6B-0626/ dia-int8/ --quantize int8 --dtype bfloat16
    """

    source: Positional[Path]
    """Directory or file to read."""
    target: Positional[Path]
    """A new directory to write."""
    layout: Literal["orbax", "transformers", "reference", "reference-pth", "descript"] = "orbax"
    """What to write: reference and reference-pth for Dia, descript for DAC, the others for both."""
    verify: bool = False
    """Read back what was written and compare every tensor, before the target appears."""
    dtype: Dtype | None = None
    """Convert Dia's kernels; by default they stay as they are, to the bit."""
    quantize: Literal["int8"] | None = None
    """Round Dia's kernels to int8; a quarter of float32's bytes. Only for the orbax layout."""
    variant: Variant | None = None
    """Dia's behaviour, where the config does not tell it rightly; it is written into the new config."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        from dia_jax.checkpoint import convert

        began = time.monotonic()
        try:
            checkpoint = convert(
                self.source,
                self.target,
                layout=self.layout,
                variant=self.variant,
                dtype=self.dtype,
                quantize=self.quantize,
                verify=self.verify,
                progress=not self.quiet,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt("nothing was written") from None
        verified = ", every tensor verified" if self.verify else ""
        print(
            f"{self.target}: {checkpoint.kind} from {checkpoint.layout} to {self.layout} layout, "
            f"{len(checkpoint.tensors)} tensors{verified}, {time.monotonic() - began:.1f} s"
        )


@dataclasses.dataclass(frozen=True)
class Info:
    """Show what is in a checkpoint, the devices that JAX sees, and versions.

    Try:

    dia-jax info

    dia-jax info dia-orbax/
    """

    checkpoint: Positional[Path | None] = None
    """A local directory or file; without it only devices and versions are shown."""

    def run(self) -> None:
        from importlib.metadata import version

        import jax

        import dia_jax

        if self.checkpoint is not None:
            from dia_jax.checkpoint import open_checkpoint

            checkpoint = open_checkpoint(self.checkpoint)
            tensors = checkpoint.tensors.values()
            values = sum(math.prod(t.shape) for t in tensors)
            print(f"{self.checkpoint}: {checkpoint.kind}, {checkpoint.layout} layout")
            print(f"  {len(tensors)} tensors, {values:,} values, {sum(t.nbytes for t in tensors) / 1e9:.3f} GB")
            print(f"  stored as {', '.join(sorted({t.dtype for t in tensors}))}")
            for problem in checkpoint.problems:
                print(f"  problem: {problem}")
            for name, value in dataclasses.asdict(checkpoint.config).items():
                print(f"  {name}: {value}")
        print(f"dia_jax {dia_jax.__version__}, Python {sys.version.split()[0]}")
        print(", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "orbax-checkpoint", "numpy")))
        for device in jax.devices():
            memory = (device.memory_stats() or {}).get("bytes_limit")
            print(f"device {device.id}: {device.device_kind}" + (f", {memory / 1e9:.1f} GB" if memory else ""))


@dataclasses.dataclass(frozen=True)
class MakeUntrained:
    """Make a small checkpoint with random weights, for trying things out.

    It makes noise, not speech; its files are laid out as those on the hub.

    Try:

    dia-jax make-untrained small/
    """

    target: Positional[Path]
    """A new directory; the codec goes into its folder dac/."""
    layout: Literal["transformers", "reference", "reference-pth", "orbax"] = "transformers"
    """Of Dia."""
    dac_layout: Literal["transformers", "descript", "orbax"] = "transformers"
    """Of DAC."""
    variant: Variant = "0626"
    """Dia's behaviour."""
    seed: int = 0
    """Of the random weights."""

    def run(self) -> None:
        from dia_jax.untrained import make_untrained

        make_untrained(
            self.target, layout=self.layout, dac_layout=self.dac_layout, variant=self.variant, seed=self.seed
        )
        print(f"{self.target}: a small Dia and DAC with random weights; they make noise, not speech.")


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Turn recordings and transcripts into codes to train on.

    The source is a folder of audio files, each with its transcript beside it (clip.wav, clip.txt), or a JSONL file
    whose lines have "path", "text" and perhaps "voice". Transcripts are scripts: they begin with [S1] or [S2]. A run
    that is broken off goes on where it was; clips that cannot be used are listed with the reason in refused.jsonl.

    Try:

    dia-jax prepare recordings/ data/

    dia-jax prepare manifest.jsonl data/ --codec my-codec/
    """

    source: Positional[Path]
    """Folder or JSONL file."""
    target: Positional[Path]
    """Folder for the codes; a new one, or one that was begun."""
    codec: str = "descript/dac_44khz"
    """That of the model to be trained: a hub repo, or a local directory or file."""
    config: Path | None = None
    """The config.json of the model to be trained, for its limits; Dia-1.6B's by default."""
    workers: int = 4
    """Threads that read and resample ahead of the codec."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import dia_from_json
        from dia_jax.files import read_json
        from dia_jax.pipeline import load_codec_from
        from dia_jax.training.data import prepare

        config = None if self.config is None else dia_from_json(read_json(self.config))
        codec = load_codec_from(resolve(self.codec), progress=not self.quiet)
        try:
            summary = prepare(
                self.source, self.target, codec, config=config, workers=self.workers, progress=not self.quiet
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.target} can be gone on with by the same command") from None
        for source, reason in summary.refused[:10]:
            print(f"refused: {source}: {reason}")
        if len(summary.refused) > 10:
            print(f"... and {len(summary.refused) - 10} more, see {self.target / 'refused.jsonl'}")
        print(
            f"{self.target}: {summary.kept} clips, {summary.seconds / 3600:.2f} h of audio; "
            f"{len(summary.refused)} refused"
        )


@dataclasses.dataclass(frozen=True)
class Train:
    """Train Dia, or an adapter for it, on prepared data.

    Killed at any moment, the same command goes on from the last checkpoint as if nothing had been. The run's folder
    shows metrics.jsonl, loss.png and samples/; at the end model/ or adapter/ is what --model or --adapter of generate
    takes.

    Try:

    dia-jax train run/ data/ --lora-rank 16 --learning-rate 2e-4 --steps 2000

    dia-jax train run/ data/ --base Dia-1.6B-0626/ --fsdp 4 --steps 20000 --validation held-out/

    dia-jax train run/ data/ --config small.json --dtype float32 --learning-rate 1e-3
    """

    folder: Positional[Path]
    """Of the run: a new one, or one that was begun."""
    data: Positional[Path]
    """What dia-jax prepare made."""
    base: str | None = None
    """The checkpoint to begin with; the hub's Dia-1.6B by default."""
    config: Path | None = None
    """The config.json of a model to be trained from random weights, in place of --base."""
    steps: int = 10_000
    """Updates of the weights, in all."""
    learning_rate: float = 1e-4
    """The highest; a cosine leads from there to a tenth of it."""
    warmup_steps: int = 500
    """Updates until the highest learning rate."""
    lora_rank: int = 0
    """Train adapters of this rank (5 MB a rank for Dia-1.6B) and leave the weights as they are; 0 trains all."""
    rows: int = 8192
    """Rows of the grid in a batch (86 a second of audio): what memory allows."""
    accumulate: int = 1
    """Batches whose gradients are averaged into one update."""
    dtype: Dtype = "bfloat16"
    """Of the computation; the weights that are trained are float32."""
    fsdp: int = 1
    """Devices over which the weights are spread; the others share the batch."""
    ema_decay: float = 0.0
    """Save a running average of the weights as the model, 0.999 for instance; 0 for none."""
    text_dropout: float = 0.15
    """Probability that a script is hidden, which is what guidance sets itself off from."""
    prompt_probability: float = 0.0
    """That the beginning of a clip is given as a voice prompt and not learnt."""
    history_dropout: float = 0.0
    """Share of the sound before that is hidden from the model, so that it must read; 0.5 for a small model that is
    trained from random weights."""
    first_channel_weight: float = 4.0
    """Of channel 0 in the loss, against 1 for the others, which follow it."""
    validation: Path | None = None
    """Prepared data whose loss is noted at every checkpoint."""
    sample: tuple[str, ...] = ()
    """Scripts to be spoken at every checkpoint, into samples/."""
    codec: str | None = None
    """For --sample; by default that of the base."""
    save_every: int = 500
    """Updates between checkpoints."""
    seed: int = 0
    """Of the order of the clips, and of random weights."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import codec_beside, dia_from_json
        from dia_jax.pipeline import DEFAULT_CODEC, DEFAULT_REPO, load_codec_from
        from dia_jax.training.data import BatchSettings
        from dia_jax.training.loop import TrainSettings, train
        from dia_jax.training.loss import LossSettings

        settings = TrainSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup_steps,
            lora_rank=self.lora_rank,
            accumulate=self.accumulate,
            dtype=self.dtype,
            fsdp=self.fsdp,
            ema_decay=self.ema_decay,
            seed=self.seed,
            batch=BatchSettings(
                self.rows,
                text_dropout=self.text_dropout,
                prompt_probability=self.prompt_probability,
                history_dropout=self.history_dropout,
            ),
            loss=LossSettings(first_channel_weight=self.first_channel_weight),
            save_every=self.save_every,
            sample_every=self.save_every if self.sample else 0,
        )
        base = _beginning(self.base, self.config, default=DEFAULT_REPO, from_json=dia_from_json)
        codec = None
        if self.sample:
            own = codec_beside(base) if isinstance(base, Path) else None
            codec = load_codec_from(resolve(self.codec or own or DEFAULT_CODEC), progress=not self.quiet)
        try:
            made = train(
                self.folder,
                self.data,
                settings,
                base=base,
                codec=codec,
                validation=self.validation,
                sample_texts=self.sample,
                progress=not self.quiet,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.folder} goes on from its last checkpoint by the same command") from None
        print(f"{made}: trained")


@dataclasses.dataclass(frozen=True)
class TrainCodec:
    """Train a DAC codec on recordings.

    Killed at any moment, the same command goes on from the last checkpoint. The run's folder shows metrics.jsonl,
    loss.png and samples/, each a stretch of speech and behind it what the codec makes of it; codec/ is the result.

    Try:

    dia-jax train-codec run/ recordings/ --base dac_44khz/ --steps 10000

    dia-jax train-codec run/ recordings/ --base dac_44khz/ --decoder-only    # the codes stay as they are
    """

    folder: Positional[Path]
    """Of the run: a new one, or one that was begun."""
    source: Positional[Path]
    """A folder of recordings, or a JSONL file whose lines have "path"."""
    base: str | None = None
    """The codec to begin with; the hub's dac_44khz by default."""
    config: Path | None = None
    """The config.json of a codec to be trained from random weights, in place of --base."""
    steps: int = 100_000
    """Updates of the weights, in all."""
    learning_rate: float = 1e-4
    """At the beginning."""
    clips: int = 8
    """Stretches of recordings in a batch."""
    frames: int = 64
    """Of each, 86 a second."""
    decoder_only: bool = False
    """Leave encoder and codebooks as they are, so that what was prepared stays valid."""
    save_every: int = 500
    """Updates between checkpoints."""
    seed: int = 0
    """Of the order of the stretches, and of random weights."""
    quiet: bool = False
    """No progress bar."""

    def run(self) -> None:
        _needs_train_extra()
        from dia_jax.checkpoint import dac_from_json
        from dia_jax.pipeline import DEFAULT_CODEC
        from dia_jax.training.codec import CodecSettings, train_codec

        settings = CodecSettings(
            steps=self.steps,
            learning_rate=self.learning_rate,
            clips=self.clips,
            frames=self.frames,
            decoder_only=self.decoder_only,
            save_every=self.save_every,
            seed=self.seed,
        )
        base = _beginning(self.base, self.config, default=DEFAULT_CODEC, from_json=dac_from_json)
        try:
            made = train_codec(self.folder, self.source, settings, base=base, progress=not self.quiet)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{self.folder} goes on from its last checkpoint by the same command") from None
        print(f"{made}: trained")


def _beginning(base: str | None, config: Path | None, *, default: str, from_json: Any) -> Any:
    """What training begins with: a checkpoint's path, or the config of a model to be trained from random weights."""
    from dia_jax.files import read_json

    if base is not None and config is not None:
        raise DiaError("--base and --config are two ways to begin; give one.")
    return resolve(base or default) if config is None else from_json(read_json(config))


def _needs_train_extra() -> None:
    try:
        import grain  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DiaError(f"Training needs {error.name}: pip install 'dia_jax[train]'.") from None


COMMANDS: dict[str, Any] = {
    "generate": Generate,
    "convert": Convert,
    "prepare": Prepare,
    "train": Train,
    "train-codec": TrainCodec,
    "info": Info,
    "make-untrained": MakeUntrained,
}


def main() -> None:
    """Entry point of `dia-jax`."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Runs the command line and gives its exit code; argparse's own errors exit with 2 by themselves."""
    command: Any = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="dia-jax", description=DESCRIPTION, args=args)
    try:
        _keep_compiled_programs()
        _drop_noise_of_failed_reads()
        command.run()
    except DiaError as error:
        print(f"dia-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        kept = f"; {error}" if str(error) else ""
        print(f"dia-jax: interrupted{kept}.", file=sys.stderr)
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        # Out of memory on the device, a full disk: what the input cannot be blamed for, but no bug to trace either.
        print(f"dia-jax: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _drop_noise_of_failed_reads() -> None:
    """When Orbax fails to read an array, callbacks may find its event loop closed; the failure itself is told."""
    default = sys.unraisablehook

    def hook(unraisable) -> None:
        if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
            default(unraisable)

    sys.unraisablehook = hook


def _keep_compiled_programs() -> None:
    import jax

    if jax.config.jax_compilation_cache_dir is None:  # pyrefly: ignore[missing-attribute]
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        cache = Path(home) / "dia_jax" / "compiled"
        jax.config.update("jax_compilation_cache_dir", str(cache))


if __name__ == "__main__":
    main()
