"""The cases of robustness.py, and the child process that runs them.

Knows how checkpoints, recordings, scripts, settings and command lines are damaged, and what counts as a good end of a
case; knows nothing of limits of time and memory, which the parent process enforces.

A case is made from the seed and its number alone. It gets a folder of its own, puts its files there, and then acts.
It ends well if the library accepts it and gives finite output, or refuses it with a `DiaError` of one line (on the
command line: one line on standard error and exit code 2), every file that was there is unchanged, and no other file is
left behind.
"""

import contextlib
import copy
import dataclasses
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from flax import nnx
from safetensors.numpy import load_file, save_file

from dia_jax import Dia, DiaError
from dia_jax.audio import read_audio
from dia_jax.checkpoint import load_params, open_checkpoint, save_params
from dia_jax.cli import run
from dia_jax.config import DacConfig, DecoderConfig, DiaConfig, EncoderConfig
from dia_jax.text import encode_text
from dia_jax.untrained import random_params

TEXT = "[S1] Hello. [S2] Hi there."
CODEC = DacConfig(encoder_size=2, decoder_size=16)
MODEL = DiaConfig(
    encoder=EncoderConfig(1, 16, 16, 2, 2, 8, max_length=128),
    decoder=DecoderConfig(1, 16, 16, 2, 1, 8, 2, 2, 8, max_length=256),
)
FULL_DISK = 100_000
"""Bytes that a file may have where a full disk is imitated."""


class Refused(Exception):
    """The case was refused as it should be; the message is the library's."""


class Fault(Exception):
    """The case ended badly.

    Attributes:
        kind: the column of the table that counts it.
    """

    def __init__(self, kind: str, message: str):
        self.kind = kind
        super().__init__(message)


@dataclasses.dataclass
class Case:
    """What a case does, its files being there.

    Attributes:
        act: does it; raises `Refused`, `Fault`, or what the library raises.
        what: a description for the report.
        writes: whether new files may be there afterwards, if it is accepted.
        replaces: names of files that may have changed afterwards, if it is accepted.
        must_refuse: whether being accepted is a fault.
    """

    act: Callable[[], None]
    what: str
    writes: bool = False
    replaces: tuple[str, ...] = ()
    must_refuse: bool = False


# --- What is damaged -------------------------------------------------------------------------------------------------


def make_bases(folder: Path, *, directed: bool) -> None:
    """Writes the files that cases start from.

    Args:
        folder: a new one.
        directed: make the large ones of the directed cases too; this takes some seconds.
    """
    folder.mkdir()
    dia, dac = random_params(MODEL)[1], random_params(CODEC)[1]
    for layout in ("transformers", "reference", "reference-pth", "orbax"):
        save_params(folder / layout, MODEL, dia, layout=layout)
    for layout in ("transformers", "descript", "orbax"):
        save_params(folder / f"dac-{layout}", CODEC, dac, layout=layout)
    shutil.copytree(folder / "dac-transformers", folder / "transformers" / "dac")

    sharded = folder / "sharded"
    shutil.copytree(folder / "transformers", sharded)
    arrays = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    shards = {name: f"model-{1 + i % 2:05}-of-00002.safetensors" for i, name in enumerate(arrays)}
    for shard in set(shards.values()):
        save_file({name: arrays[name] for name in arrays if shards[name] == shard}, sharded / shard)
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    (folder / "adapter").mkdir()
    pairs = {}
    rng = np.random.default_rng(0)
    for path, value in nnx.to_flat_state(dia):
        if "layers" in path and path[-1] == "weight" and value.ndim == 2:
            name = ".".join(map(str, path[:-1]))
            pairs[f"{name}.a"] = rng.standard_normal((4, value.shape[1])).astype(np.float32)
            pairs[f"{name}.b"] = rng.standard_normal((value.shape[0], 4)).astype(np.float32)
    save_file(pairs, folder / "adapter" / "adapter.safetensors")
    (folder / "adapter" / "adapter.json").write_text(json.dumps({"rank": 4, "alpha": 4.0}))

    (folder / "sounds").mkdir()
    noise = np.clip(np.cumsum(rng.normal(0, 0.02, (20_000, 2)), axis=0) % 1.0 - 0.5, -0.5, 0.5)
    formats = [(suffix, None, None) for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au", "caf", "w64", "rf64")]
    formats += [
        ("wav", "WAV", "FLOAT"),
        ("wav", "WAV", "IMA_ADPCM"),
        ("wav", "WAVEX", "PCM_24"),
        ("opus", "OGG", "OPUS"),
    ]
    for number, (suffix, kind, subtype) in enumerate(formats):
        samples = noise if number % 2 else noise[:, 0]
        rate = 48_000 if subtype == "OPUS" else 22_050
        soundfile.write(folder / "sounds" / f"{number}.{suffix}", samples, rate, format=kind, subtype=subtype)

    if directed:
        hour = folder / "hour.flac"
        with soundfile.SoundFile(hour, "w", 2000, 8, subtype="PCM_16") as file:
            block = np.full((200_000, 8), 100, np.int16)
            for _ in range(36):
                file.write(block)
        with zipfile.ZipFile(folder / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")
            with archive.open("archive/data.pkl", "w", force_zip64=True) as member:
                member.write(b"\x80\x02B" + (2**31 - 1).to_bytes(4, "little"))
                for _ in range(2**31 // 2**24):
                    member.write(bytes(2**24))
                member.write(b".")


def damage(rng: random.Random, data: bytes, *, head: int = 200) -> bytes:
    """Bytes with one to four defects, most of them near the beginning, where headers are."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(max(1, min(head, len(data)) if rng.random() < 0.6 else len(data)))
        size = rng.choice((1, 2, 4, 8, 64, 1000))
        match rng.randrange(8):
            case 0 if data:
                data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
            case 1:
                data[at : at + size] = rng.randbytes(size)
            case 2:
                data[at : at + size] = rng.choice((b"\x00", b"\xff", b"\x7f")) * size
            case 3:
                del data[at:]
            case 4:
                del data[at : at + size]
            case 5:
                data[at:at] = rng.randbytes(size)
            case 6:
                data += rng.randbytes(size)
            case _:
                other = rng.randrange(max(1, len(data)))
                data[at : at + size] = data[other : other + size]
    return bytes(data)


RAW = {"@1e400": "1e400", "@deep": "[" * 100_000 + "]" * 100_000, "@digits": "1" * 5000, "@twice": '{"a": 1, "a": 2}'}
"""JSON that Python's writer would not write, by what stands for it."""

ODD = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 1e39, 2**31, 2**63, 10**9, 10**18, 10**400, "", "x", "16"),
    *(float("nan"), float("inf"), float("-inf"), [], {}, [[]], [0], [2] * 200, {"a": {}}, "\x00", "\udcff", "é" * 300),
    *RAW,
)


def damage_json(rng: random.Random, value: Any) -> str:
    """JSON in which one to three values or keys were changed."""
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        if not places:
            return json.dumps(rng.choice(ODD))
        holder, key = rng.choice(places)
        match rng.randrange(6):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[str(rng.choice(("x", "", "\udcff", key.upper())))] = holder.pop(key)
            case 2 if isinstance(holder[key], int | float):
                holder[key] *= rng.choice((-1, 0, 2, 3, 1000, 10**6, 10**10, 0.5))
            case 3:
                other, name = rng.choice(places)
                holder[key] = copy.deepcopy(other[name])
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD))
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(json.dumps(value))
    text = json.dumps(value)
    for name, raw in RAW.items():
        text = text.replace(json.dumps(name), raw)
    return text


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def damage_file(rng: random.Random, path: Path) -> str:
    """Damages one file in place, by its kind, and says how."""
    if rng.random() < 0.04:
        path.unlink()
        return _replace(path, rng.choice(("nothing", "fifo", "zero", "folder", "loop", "empty")))
    if path.suffix == ".json" or path.name in ("_METADATA", "_CHECKPOINT_METADATA", "_sharding"):
        if rng.random() < 0.8:
            path.write_bytes(damage_json(rng, json.loads(path.read_bytes())).encode("utf-8", "surrogatepass"))
            return f"{path.name}, a value"
    elif path.suffix == ".safetensors" and rng.random() < 0.5:
        data = path.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = damage_json(rng, json.loads(data[8 : 8 + size])).encode("utf-8", "surrogatepass")
        size = len(header) if rng.random() < 0.95 else rng.choice((0, 2**63, 2**40, len(header) - 1))
        path.write_bytes(size.to_bytes(8, "little") + header + data[8 + int.from_bytes(data[:8], "little") :])
        return f"{path.name}, its header"
    elif path.suffix == ".pth" and rng.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        name = next(n for n in members if n.endswith("data.pkl"))
        name = name if rng.random() < 0.8 else rng.choice(list(members))
        members[name] = damage(rng, members[name], head=len(members[name]))
        _write_zip(path, members, zipfile.ZIP_DEFLATED if rng.random() < 0.1 else zipfile.ZIP_STORED)
        return f"{path.name}, {name} in it"
    path.write_bytes(damage(rng, path.read_bytes()))
    return f"{path.name}, its bytes"


def _replace(path: Path, kind: str) -> str:
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "zero":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case "empty":
            path.touch()
    return f"{path.name} is {kind}"


def _write_zip(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


# --- What is done with it --------------------------------------------------------------------------------------------


class Captured:
    """Standard output and standard error of this process, in files."""

    def __init__(self, folder: Path):
        self._files = {}
        for handle, name in ((1, "stdout"), (2, "stderr")):
            self._files[name] = open(folder / name, "w+b")  # noqa: SIM115 (as long as the process)
            os.dup2(self._files[name].fileno(), handle)

    def clear(self) -> None:
        """Forgets what was written."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for handle in (1, 2):
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)

    def read(self, name: str) -> str:
        """What was written since `clear`."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        size = os.fstat(self._files[name].fileno()).st_size
        return os.pread(self._files[name].fileno(), min(size, 1_000_000), 0).decode("utf-8", "replace")


CAPTURED: Captured


def command(*args: object) -> None:
    """Runs the command line; raises as the library does.

    Raises:
        Refused: exit code 2, with one line on standard error, or with the usage where the arguments do not parse.
        Fault: any other end.
    """
    CAPTURED.clear()
    try:
        code = run([str(arg) for arg in args])
    except SystemExit as error:
        if error.code in (0, 2):
            raise Refused(f"the arguments do not parse: exit code {error.code}") from None
        raise
    message = CAPTURED.read("stderr")
    if code == 0:
        return
    if code != 2:
        raise Fault("exit 1", message[-400:])
    if message.count("\n") != 1 or not message.startswith("dia-jax: "):
        raise Fault("several lines", f"{message.count(chr(10))} lines: {message[:200]} ... {message[-200:]}")
    raise Refused(message)


def check_finite(values: Any, what: str) -> None:
    """Raises a Fault if any array in a tree is not finite."""
    for leaf in jax.tree.leaves(values):
        array = np.asarray(leaf)
        if array.dtype.kind in "iub":
            continue
        count = array.size - np.isfinite(array.astype(np.float32, copy=False)).sum()
        if count:
            raise Fault("not finite", f"{what} has {count} non-finite values")


def load(path: Path, *, adapter: Path | None = None, speak: bool = False) -> None:
    """Opens and loads a checkpoint, Dia or DAC, and perhaps makes some frames with it."""
    checkpoint = open_checkpoint(path)
    graphdef, params = load_params(checkpoint, adapter=adapter)
    check_finite(params, "a parameter")
    if speak and isinstance(checkpoint.config, DiaConfig):
        dia = Dia(checkpoint.config, graphdef, params)
        check_codes(dia.generate_codes(TEXT, max_tokens=3, seed=0), checkpoint.config)


def check_codes(codes: Any, config: DiaConfig = MODEL) -> None:
    """Raises a Fault unless codes are int [n, C] within the codebook."""
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.dtype.kind not in "iu" or (codes.size and not 0 <= codes.min() <= codes.max() < 1024):
        raise Fault("not finite", f"codes {codes.dtype} {codes.shape}, {config.decoder.num_channels} channels")


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond `FULL_DISK`: to whoever writes it, much the same as a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_DISK, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- Random cases ----------------------------------------------------------------------------------------------------

_LOADED: dict[Path, Dia] = {}


def base_dia(bases: Path) -> Dia:
    """The undamaged model with its codec, loaded once."""
    if bases not in _LOADED:
        _LOADED[bases] = Dia.from_pretrained(bases / "transformers")
    return _LOADED[bases]


def damaged_checkpoint(*names: str) -> Callable[[random.Random, Path, Path], Case]:
    """Cases with a defect in one file of one of these bases."""

    def make(rng: random.Random, bases: Path, folder: Path) -> Case:
        base = rng.choice(names)
        shutil.copytree(bases / base, folder / "model")
        files = sorted(p for p in (folder / "model").rglob("*") if p.is_file() and p.parent.name != "dac")
        weights = [p for p in files if p.suffix != ".json" or p.name.endswith("index.json")]
        what = f"{base}: {damage_file(rng, rng.choice(weights))}"
        return _use_checkpoint(rng, bases, folder, base, what)

    return make


def damaged_config(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case with a defect in a config.json, Dia's or DAC's."""
    base = rng.choice(("transformers", "reference", "orbax", "dac-transformers", "dac-orbax"))
    shutil.copytree(bases / base, folder / "model")
    what = f"{base}: {damage_file(rng, folder / 'model' / 'config.json')}"
    if rng.random() < 0.8:
        return Case(lambda: load(folder / "model", speak=True), f"load {what}")
    return _use_checkpoint(rng, bases, folder, base, what)


def _use_checkpoint(rng: random.Random, bases: Path, folder: Path, base: str, what: str) -> Case:
    model = folder / "model"
    match rng.choice(("load",) * 7 + ("convert", "generate", "info")):
        case "load":
            return Case(lambda: load(model), f"load {what}")
        case "convert":
            dac = base.startswith("dac")
            layout = rng.choice(("orbax", "transformers", "descript" if dac else "reference"))
            args = ("convert", model, folder / "new", "--layout", layout, "--quiet", *rng.choice(((), ("--verify",))))
            return Case(lambda: command(*args), f"convert to {layout} {what}", writes=True)
        case "info":
            return Case(lambda: command("info", model), f"info {what}")
        case _:
            which = (
                ("--model", bases / "transformers", "--codec", model) if base.startswith("dac") else ("--model", model)
            )
            codec = () if base.startswith("dac") else ("--codec", bases / "dac-transformers")
            args = ("generate", TEXT, *which, *codec, "-o", folder / "x.wav", "--max-tokens", 3, "--quiet")
            return Case(lambda: command(*args), f"generate with {what}", writes=True)


def damaged_adapter(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case with a defect in an adapter."""
    shutil.copytree(bases / "adapter", folder / "adapter")
    what = damage_file(rng, folder / "adapter" / rng.choice(("adapter.json", "adapter.safetensors")))
    return Case(lambda: load(bases / "transformers", adapter=folder / "adapter"), f"adapter: {what}")


def damaged_recording(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case with a defect in a recording."""
    source = rng.choice(sorted((bases / "sounds").iterdir()))
    path = folder / source.name
    path.write_bytes(damage(rng, source.read_bytes(), head=rng.choice((64, 2000))))
    if rng.random() < 0.1:
        args = (
            "generate",
            TEXT,
            "--model",
            bases / "transformers",
            "--audio-prompt",
            path,
            "--max-tokens",
            3,
            "--quiet",
        )
        return Case(lambda: command(*args, "-o", folder / "new.wav"), f"prompt {path.name}", writes=True)

    def act() -> None:
        samples = read_audio(path, rate=44_100)
        if samples.ndim != 1 or samples.dtype != np.float32 or not samples.size:
            raise Fault("not finite", f"samples {samples.dtype} {samples.shape}")
        check_finite(samples, "the recording")

    return Case(act, f"read {path.name}")


PIECES = (
    *(
        "[S1]",
        "[S2]",
        "[S3]",
        "[S1",
        "S2]",
        " ",
        "\n",
        "\t",
        "Hello.",
        "(laughs)",
        "é",
        "東京",
        "😀",
        "\u202e",
        "\u0000",
    ),
    *("\x01", "\x02", "\x7f", "\udcff", "\ud800", "\ufeff", "x" * 50, "[S1] " * 20, "a\u0300", "\r\n", "\u2028", "0"),
)


def script(rng: random.Random) -> str:
    """A script of random pieces, about half of them usable."""
    text = "".join(rng.choice(PIECES) for _ in range(rng.choice((0, 1, 3, 5, 20))))
    if rng.random() < 0.5:
        text = "[S1] Hi. " + "".join(c for c in text if c.isprintable())
    return text


def odd_script(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case with an odd script, given to the library or to the command line in one of three ways."""
    text = script(rng)
    way = rng.choice(("encode",) * 6 + ("generate", "argument", "file", "stdin"))
    args = ("--model", bases / "transformers", "-o", folder / "x.wav", "--max-tokens", 3, "--quiet")
    raw = text.encode("utf-8", "surrogateescape" if "\ud800" not in text else "surrogatepass")
    raw = damage(rng, raw) if rng.random() < 0.3 else raw

    def act() -> None:
        if way == "encode":
            encode_text(text, max_length=rng.choice((8, 128, 1024)), truncate=rng.random() < 0.5)
        elif way == "generate":
            check_codes(base_dia(bases).generate_codes(text, max_tokens=3, seed=0, truncate=rng.random() < 0.5))
        elif way == "argument":
            command("generate", text, *args)
        elif way == "file":
            command("generate", "--file", folder / "script.txt", *args)
        else:
            sys.stdin = io.TextIOWrapper(io.BytesIO(raw))
            command("generate", *args)

    if way == "file":
        (folder / "script.txt").write_bytes(raw)
    return Case(act, f"{way} {text[:60]!r}", writes=True)


ODD_VALUES = (
    *ODD,
    *(b"x", 1j, (), (1,), {1}, np.float16(0.5), np.int8(-1), np.zeros(0), np.zeros((2, 2)), np.array("x")),
    *(np.nan, np.array(3), np.array([1, 2]), object(), np.float32("inf"), lambda: 1, "[S1] Hi.", ["[S1] Hi."]),
)


USABLE: dict[str, tuple] = {
    "cfg_scale": (0, 1, 3.0, 1e6, np.float32(2)),
    "temperature": (0, 1e-6, 1.2, 1e6, np.float16(0.5)),
    "top_p": (1e-9, 0.5, 1, np.float64(0.95)),
    "cfg_filter_top_k": (1, 45, 45.0, 2**24 - 1, np.int64(7)),
    "seed": (0, 2**32 - 1, None, np.uint32(5), [1], np.array([3])),
    "truncate": (False, True),
    "audio_prompt": (None, np.zeros((3, 9), np.int16), np.zeros((0, 9), int), [None]),
    "max_tokens": (1, 2, np.int8(3)),
}
"""Settings that are unusual and yet usable."""


def odd_settings(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case that calls `Dia` with unusual settings, prompts and keys, some of them unusable."""
    keys = [jax.random.key(1), jax.random.key(1, impl="rbg"), jax.random.split(jax.random.key(0), 3)]
    values = [*ODD_VALUES, *keys]
    settings: dict[str, Any] = {name: rng.choice(usable) for name, usable in USABLE.items()}
    for name in rng.sample(list(USABLE), rng.choice((0, 1, 1, 1, 2))):
        settings[name] = rng.choice(values)
    if rng.random() < 0.1:
        settings["audio_prompt"] = (rng.choice((np.sin(np.arange(5000)), *values)), rng.choice((44_100, *values)))
    text = rng.choice(values) if rng.random() < 0.1 else rng.choice((TEXT, TEXT, [TEXT], [TEXT, TEXT]))
    stream = rng.random() < 0.2

    def act() -> None:
        dia = base_dia(bases)
        if stream:
            for chunk in dia.stream(text, **settings):
                check_finite(chunk, "a chunk")
        else:
            codes = dia.generate_codes(text, **settings)
            for one in codes if isinstance(codes, list) else [codes]:
                check_codes(one)

    return Case(act, f"{str(text)[:40]} {str({k: str(v)[:40] for k, v in settings.items()})[:300]}")


def odd_command(rng: random.Random, bases: Path, folder: Path) -> Case:
    """A case with an odd command line."""
    (folder / "there.wav").write_text("precious")
    (folder / "folder.wav").mkdir()
    (folder / "link.wav").symlink_to("target.wav")
    os.mkfifo(folder / "pipe.wav")
    (folder / "script.txt").write_text(TEXT)
    shutil.copy(sorted((bases / "sounds").iterdir())[0], folder / "me.wav")
    words = (
        "-1",
        "0",
        "1",
        "1e400",
        "nan",
        "inf",
        "x",
        "",
        "1" * 5000,
        "0x10",
        "1_0",
        "\udcff",
        "é",
        "--",
        "None",
        "-",
    )
    outputs = (
        *("x.wav", "x.flac", "x.mp3", "x.ogg", "x.doc", "x", "", ".", "/", "no/x.wav", "there.wav", "folder.wav"),
        *(
            "link.wav",
            "pipe.wav",
            "y" * 240 + ".wav",
            "y" * 260 + ".wav",
            "\udcff.wav",
            "a\nb.wav",
            ".wav",
            "x.WAV",
            "-",
        ),
        *("/dev/null", "/dev/full", "/proc/x.wav", "-x.wav", "~.wav", "x.wav/", "\x1b[1m.wav"),
    )
    options: dict[str, tuple] = {
        "--output": outputs,
        "--file": ("script.txt", "no.txt", ".", "/dev/zero", "/dev/null", "pipe.wav", "\udcff", "me.wav"),
        "--audio-prompt": ("me.wav", "there.wav", "folder.wav", "pipe.wav", "/dev/zero", "/dev/null", "\udcff.wav"),
        "--prompt-text": ("[S1] Hm.", "", "x", "\udcff"),
        "--model": (
            *map(str, sorted(bases.iterdir())),
            "no",
            "/dev/zero",
            "pipe.wav",
            ".",
            "a/b/c",
            "\udcff",
            "",
            "a b",
        ),
        "--codec": (*map(str, sorted(bases.glob("dac-*"))), "no", "/dev/null", str(bases / "transformers")),
        "--adapter": (str(bases / "adapter"), "no", "/dev/null"),
        "--dtype": ("float32", "bfloat16", "float16", "float8"),
        "--quantize": ("int8", "int4"),
        "--variant": ("0626", "v0.1", "x"),
        **dict.fromkeys(("--cfg-scale", "--temperature", "--top-p", "--seed"), ("0", "1", "0.5", "45", *words)),
        **dict.fromkeys(("--cfg-filter-top-k", "--max-tokens", "--batch-size"), ("1", "2", *words)),
        **dict.fromkeys(("--stream", "--picture", "--truncate", "--bogus"), ()),
    }
    if rng.random() < 0.15:
        target = rng.choice(("new", "there.wav", "folder.wav", "link.wav", "no/x", "", ".", "\udcff", "y" * 260))
        args = rng.choice(
            (
                ("info", rng.choice(options["--model"])),
                ("convert", rng.choice(options["--model"]), target, "--quiet"),
                ("make-untrained", target, "--layout", "descript"),
                ("prepare", rng.choice((".", "script.txt", "no", "/dev/null")), target, "--codec", "no"),
            )
        )
    else:
        given: dict[str, tuple] = {
            "--model": (str(bases / "transformers"),),
            "--max-tokens": ("3",),
            "--output": ("x.wav",),
        }
        for name in rng.sample(list(options), rng.choice((1, 1, 2, 3))):
            given[name] = (rng.choice(options[name]),) if options[name] else ()
        texts = rng.choice(((TEXT,), (TEXT, TEXT), (script(rng),)))
        args = (
            "generate",
            *texts,
            *(part for name in given for part in (name, *given[name])),
            "--quiet",
            "--local-files-only",
        )
    args = tuple(arg.replace("\x00", "") for arg in args)
    sys.stdin = io.TextIOWrapper(io.BytesIO(b""))
    there = ("there.wav", "me.wav", "link.wav", "folder.wav")
    return Case(lambda: command(*args), " ".join(args)[:300], writes=True, replaces=there)


KINDS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "safetensors": damaged_checkpoint("transformers", "reference", "dac-transformers"),
    "pth": damaged_checkpoint("reference-pth", "dac-descript"),
    "orbax": damaged_checkpoint("orbax", "dac-orbax"),
    "shards": damaged_checkpoint("sharded"),
    "adapters": damaged_adapter,
    "configs": damaged_config,
    "recordings": damaged_recording,
    "texts": odd_script,
    "settings": odd_settings,
    "commands": odd_command,
}
"""The kinds of random cases; case i is of kind i modulo their number."""


# --- Directed cases --------------------------------------------------------------------------------------------------

DIRECTED: dict[str, Callable[[Path, Path], Case]] = {}
"""Cases by name, one or more for each finding of an earlier run: finding-1-..., finding-2-..., ..."""


def directed(name: str) -> Callable:
    def register(make: Callable[[Path, Path], Case]) -> Callable[[Path, Path], Case]:
        DIRECTED[f"finding-{name}"] = make
        return make

    return register


def _changed(bases: Path, folder: Path, base: str, **changes: Any) -> Path:
    """A copy of a base with changes in its config.json, wherever the keys are in it."""
    shutil.copytree(bases / base, folder / "model")
    path = folder / "model" / "config.json"
    data = json.loads(path.read_text())
    for part in (data, data.get("encoder_config"), data.get("decoder_config")):
        if isinstance(part, dict):
            part |= {key: value for key, value in changes.items() if key in part}
            if "rope_theta" in changes and isinstance(part.get("rope_parameters"), dict):
                part["rope_parameters"]["rope_theta"] = changes["rope_theta"]
    path.write_text(json.dumps(data))
    return folder / "model"


for _name, _base, _changes in (
    ("1-layers", "transformers", {"num_hidden_layers": 100_000}),
    ("1-codebooks", "dac-transformers", {"n_codebooks": 10**9}),
    ("1-ratios", "dac-transformers", {"downsampling_ratios": [2] * 200, "upsampling_ratios": [2] * 200}),
    ("1-positions", "transformers", {"max_position_embeddings": 10**10}),
    ("5-theta", "transformers", {"rope_theta": 10**400}),
    ("5-eps", "transformers", {"norm_eps": 10**400}),
):

    @directed(_name)
    def _config_case(bases: Path, folder: Path, base: str = _base, changes: dict = _changes) -> Case:
        model = _changed(bases, folder, base, **changes)
        return Case(lambda: load(model, speak=True), f"{base} with {str(changes)[:60]}", must_refuse=True)


@directed("2-hour")
def _hour(bases: Path, folder: Path) -> Case:
    return Case(lambda: check_finite(read_audio(bases / "hour.flac", rate=44_100), "an hour"), "an hour of 8 channels")


@directed("2-hour-prompt")
def _hour_prompt(bases: Path, folder: Path) -> Case:
    args = ("generate", TEXT, "--model", bases / "transformers", "--audio-prompt", bases / "hour.flac")
    return Case(lambda: command(*args, "-o", folder / "x.wav"), "an hour of 8 channels as a prompt", must_refuse=True)


def _pth(bases: Path, folder: Path, data: bytes) -> Path:
    """The reference's .pth with another data.pkl."""
    shutil.copytree(bases / "reference-pth", folder / "model")
    path = next((folder / "model").glob("*.pth"))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members[next(n for n in members if n.endswith("data.pkl"))] = data
    _write_zip(path, members)
    return folder / "model"


@directed("2-deflated-pickle")
def _deflated(bases: Path, folder: Path) -> Case:
    model = _pth(bases, folder, b"")
    path = next(model.glob("*.pth"))
    path.unlink()
    path.symlink_to(bases / "bomb.pth")
    return Case(lambda: load(model), "a .pth whose pickle inflates to 2 GB", must_refuse=True)


_STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
for _name, _pickle in (
    ("2-bytearray", b"\x80\x02cbuiltins\nbytearray\n\x8a\x05" + (6 * 10**9).to_bytes(5, "little") + b"\x85R."),
    ("5-ordered-dict", b"\x80\x02ccollections\nOrderedDict\nK\x05\x85R."),
    ("5-size", b"\x80\x02}X\x01\x00\x00\x00actorch\nSize\nK\x05\x85Rs."),
    ("5-rebuild", b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\nK\x05\x85Rs."),
    ("5-persistent-id", b"\x80\x02}X\x01\x00\x00\x00aK\x05Qs."),
    ("5-list", pickle.dumps([1, 2], protocol=2)),
    ("6-deep-pickle", b"\x80\x02" + b"(" * 100_000 + b"l" * 100_000 + b"."),
):

    @directed(_name)
    def _pickle_case(bases: Path, folder: Path, data: bytes = _pickle) -> Case:
        model = _pth(bases, folder, data)
        return Case(lambda: load(model), f"a .pth with the pickle {data[:40]!r}", must_refuse=True)


for _number, _settings in enumerate(
    (
        {"rank": 4, "alpha": float("nan")},
        {"rank": 4, "alpha": 1e39},
        {"rank": 5, "alpha": 4.0},
        {"rank": -4, "alpha": 4.0},
        {"rank": float("inf"), "alpha": 4.0},
        {"rank": 4, "alpha": 10**400},
    )
):

    @directed(f"3-adapter-{_number + 1}")
    def _adapter_case(bases: Path, folder: Path, settings: dict = _settings) -> Case:
        shutil.copytree(bases / "adapter", folder / "adapter")
        (folder / "adapter" / "adapter.json").write_text(json.dumps(settings))
        act = lambda: load(bases / "transformers", adapter=folder / "adapter")  # noqa: E731
        return Case(act, f"an adapter with {str(settings)[:60]}", must_refuse=True)


@directed("4-output-not-utf8")
def _not_utf8(bases: Path, folder: Path) -> Case:
    odd = folder / os.fsdecode(b"\xff\xe9.wav")
    args = ("generate", TEXT, "--model", bases / "transformers", "--max-tokens", 3, "--quiet", "-o", odd)
    return Case(lambda: command(*args), "an output whose name is not UTF-8", writes=True)


@directed("4-inputs-not-utf8")
def _inputs_not_utf8(bases: Path, folder: Path) -> Case:
    sound, text = folder / os.fsdecode(b"\xff\xe9.wav"), folder / os.fsdecode(b"\xff.txt")
    shutil.copy(bases / "sounds" / "0.wav", sound)
    text.write_text(TEXT)
    args = ("generate", "--file", text, "--audio-prompt", sound, "--model", bases / "transformers", "--max-tokens", 3)
    return Case(
        lambda: command(*args, "-o", folder / "x.wav", "--quiet"), "inputs whose names are not UTF-8", writes=True
    )


for _length in (250, 251, 252):

    @directed(f"4-name-of-{_length}")
    def _long_name(bases: Path, folder: Path, length: int = _length) -> Case:
        args = ("generate", TEXT, TEXT, "--model", bases / "transformers", "--max-tokens", 3, "--quiet")
        output = folder / ("x" * (length - 4) + ".wav")
        return Case(lambda: command(*args, "-o", output), f"two outputs named after one of {length} bytes", writes=True)


for _layout in ("transformers", "reference", "reference-pth", "orbax"):

    @directed(f"5-full-disk-make-untrained-{_layout}")
    def _full_make(bases: Path, folder: Path, layout: str = _layout) -> Case:
        def act() -> None:
            with full_disk():
                command("make-untrained", folder / "new", "--layout", layout)

        return Case(act, f"make-untrained, {layout}, on a full disk", must_refuse=True)

    @directed(f"9-full-disk-convert-{_layout}")
    def _full_convert(bases: Path, folder: Path, layout: str = _layout) -> Case:
        def act() -> None:
            with full_disk():
                command("convert", bases / "transformers", folder / "new", "--layout", layout, "--quiet")

        return Case(act, f"convert to {layout} on a full disk", must_refuse=True)


@directed("5-convert-not-utf8")
def _convert_not_utf8(bases: Path, folder: Path) -> Case:
    args = ("convert", bases / "transformers", folder / os.fsdecode(b"\xff"), "--layout", "orbax", "--quiet")
    return Case(lambda: command(*args), "convert to a target whose name is not UTF-8", writes=True)


@directed("6-deep-json")
def _deep(bases: Path, folder: Path) -> Case:
    shutil.copytree(bases / "transformers", folder / "model")
    (folder / "model" / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    return Case(lambda: load(folder / "model"), "a deeply nested config", must_refuse=True)


for _claimed in (0, 2**36 - 1, 44_100 * 3600):

    @directed(f"6-flac-of-{_claimed}")
    def _flac(bases: Path, folder: Path, claimed: int = _claimed) -> Case:
        data = bytearray((bases / "sounds" / "1.flac").read_bytes())
        data[21] = data[21] & 0xF0 | claimed >> 32
        data[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
        (folder / "x.flac").write_bytes(data)
        return Case(
            lambda: check_finite(read_audio(folder / "x.flac", rate=44_100), "x"), f"a FLAC that claims {claimed}"
        )


for _target in ("full", "empty", "missing"):

    @directed(f"7-target-link-{_target}")
    def _link_target(bases: Path, folder: Path, target: str = _target) -> Case:
        if target != "missing":
            (folder / "aim").mkdir()
        if target == "full":
            (folder / "aim" / "precious").touch()
        (folder / "link").symlink_to("aim")
        shutil.copytree(bases / "transformers", folder / "bad")
        weights = folder / "bad" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"\xff\xff\xff\xff")  # not a number, which loading finds

        def act() -> None:
            # A target that cannot be written must be found before loading finds what is wrong with the source.
            args = (folder / "link", "--layout", "transformers", "--quiet")
            try:
                command("convert", folder / "bad", *args)
            except Refused as error:
                if "link" in str(error) or "aim" in str(error):
                    raise
            try:
                command("convert", bases / "transformers", *args)
            except Refused as error:
                raise Fault("late", str(error)) from None

        return Case(act, f"convert to a link, target {target}", writes=True, replaces=("link",))


@directed("8-killed-convert")
def _killed(bases: Path, folder: Path) -> Case:
    args = ["convert", str(bases / "transformers"), str(folder / "new"), "--layout", "transformers", "--quiet"]
    code = (
        "import os, sys, shutil; kill = lambda *a, **k: os.kill(os.getpid(), 9); os.replace = os.rename = kill; "
        f"from dia_jax.cli import run; run({args!r})"
    )

    def act() -> None:
        subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
        command(*args)
        if left := sorted(set(os.listdir(folder)) - {"new"}):
            raise Fault("left behind", f"after a killed run and a complete one: {left}")

    return Case(act, "convert after a convert that was killed", writes=True)


for _kind in ("fifo", "zero"):
    for _place in ("transformers/config.json", "sharded/model.safetensors.index.json", "adapter/adapter.json"):

        @directed(f"10-{_kind}-{_place.split('/')[1]}")
        def _special(bases: Path, folder: Path, kind: str = _kind, place: str = _place) -> Case:
            base, name = place.split("/")
            shutil.copytree(bases / base, folder / "model")
            (folder / "model" / name).unlink()
            _replace(folder / "model" / name, kind)
            if base == "adapter":
                act = lambda: load(bases / "transformers", adapter=folder / "model")  # noqa: E731
            else:
                act = lambda: load(folder / "model")  # noqa: E731
            return Case(act, f"{place} is {kind}", must_refuse=True)

    @directed(f"10-{_kind}-orbax")
    def _special_orbax(bases: Path, folder: Path, kind: str = _kind) -> Case:
        shutil.copytree(bases / "orbax", folder / "model")
        path = next((folder / "model").rglob("_METADATA"))
        path.unlink()
        _replace(path, kind)
        return Case(lambda: load(folder / "model"), f"Orbax's _METADATA is {kind}", must_refuse=True)

    @directed(f"10-{_kind}-script")
    def _special_script(bases: Path, folder: Path, kind: str = _kind) -> Case:
        _replace(folder / "script", kind)
        args = ("generate", "--file", folder / "script", "--model", bases / "transformers", "-o", folder / "x.wav")
        return Case(lambda: command(*args), f"--file is {kind}", must_refuse=True)


@directed("11-link")
def _link(bases: Path, folder: Path) -> Case:
    (folder / "target.wav").write_text("old")
    (folder / "link.wav").symlink_to("target.wav")

    def act() -> None:
        args = ("generate", TEXT, "--model", bases / "transformers", "--max-tokens", 3, "--quiet")
        command(*args, "-o", folder / "link.wav")
        if not (folder / "link.wav").is_symlink():
            raise Fault("lost", "the link was replaced by a file")

    return Case(act, "an output that is a symbolic link", replaces=("target.wav",))


for _number, _shape in enumerate(((2, 2), (3,), (1, 1, 1))):

    @directed(f"12-key-{_number + 1}")
    def _key(bases: Path, folder: Path, shape: tuple = _shape) -> Case:
        keys = jax.random.split(jax.random.key(0), shape)
        names = {"cfg_scale": keys, "max_tokens": 3, "seed": keys}
        act = lambda: check_codes(base_dia(bases).generate_codes(TEXT, **names))  # noqa: E731
        return Case(act, f"keys {shape} as numbers", must_refuse=True)


# --- The child process -----------------------------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[str, str]:
    """What is in a folder: a digest of each file, and what other things are."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder" if path.is_dir() else "special"
    return found


def kind_of(name: str) -> str:
    """The kind of a case, by its number or name."""
    return list(KINDS)[int(name) % len(KINDS)] if name.isdigit() else "directed"


def run_case(name: str, *, seed: int, bases: Path, folder: Path) -> dict[str, str]:
    """Runs one case in a new folder.

    Returns:
        its outcome: "accepted", "refused", or the kind of a fault; with a description and the message.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    os.chdir(folder)
    (folder.parent / "what").write_text("making the case")
    rng = random.Random(f"{seed} {name}")
    case = KINDS[kind_of(name)](rng, bases, folder) if name.isdigit() else DIRECTED[name](bases, folder)
    (folder.parent / "what").write_text(case.what, errors="replace")  # for the parent, if this is the end
    before = snapshot(folder)
    CAPTURED.clear()
    stdin = sys.stdin
    try:
        case.act()
        outcome, detail = ("accepted although it must be refused" if case.must_refuse else "accepted"), ""
    except Refused as error:
        outcome, detail = "refused", str(error)
    except Fault as error:
        outcome, detail = error.kind, str(error)
    except DiaError as error:
        outcome, detail = ("several lines" if "\n" in str(error) else "refused"), str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome, detail = "traceback", f"{type(error).__name__}: {error}"
    finally:
        sys.stdin = stdin
    if outcome in ("accepted", "refused"):
        after, done = snapshot(folder), outcome == "accepted"
        changed = [n for n in before if after.get(n) != before[n] and not (done and n in case.replaces)]
        hidden = [n for n in after if n not in before and any(part.startswith(".") for part in Path(n).parts)]
        new = [n for n in after if n not in before and not (done and case.writes)]
        own = {n for n in hidden if n == ".wav"}  # an output that a case asked for
        if changed:
            outcome, detail = "lost", f"changed: {', '.join(changed)}"
        elif new or set(hidden) - own:
            outcome, detail = "left behind", f"{', '.join({*new, *hidden})}"
    return {"name": name, "outcome": outcome, "what": case.what, "detail": detail[:500]}


def serve(bases: Path, work: Path, seed: int) -> None:
    """Runs the cases whose names come on standard input, a line each, and writes their outcomes as JSON lines."""
    global CAPTURED
    names, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    tempfile.tempdir = str(work)
    CAPTURED = Captured(work)
    check_codes(base_dia(bases).generate_codes(TEXT, max_tokens=3, seed=0))  # compiles, outside any case's time
    open_checkpoint(bases / "dac-descript")  # imports torch
    answers.write("ready\n")
    answers.flush()
    for line in names:
        with contextlib.suppress(OSError):  # the peak of resident memory starts anew, where the system allows it
            Path("/proc/self/clear_refs").write_text("5")
        answers.write(json.dumps(run_case(line.strip(), seed=seed, bases=bases, folder=work / "case")) + "\n")
        answers.flush()


if __name__ == "__main__":
    if sys.argv[1] == "bases":
        make_bases(Path(sys.argv[2]), directed=sys.argv[3] == "directed")
    else:
        serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
