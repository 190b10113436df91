"""The command line as a shell sees it: files, words and exit codes."""

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
import soundfile

from dia_jax import Dia
from dia_jax.checkpoint import DTYPES
from dia_jax.cli import run
from dia_jax.cli.common import Dtype, printable, say
from dia_jax.cli.generate import MAX_SCRIPT_BYTES, Generate

TEXT = "[S1] Hello. [S2] Hi there."


@pytest.fixture(autouse=True)
def _restore_process():
    hook, cache = sys.unraisablehook, jax.config.jax_compilation_cache_dir
    yield
    sys.unraisablehook = hook
    jax.config.update("jax_compilation_cache_dir", cache)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def generate(small: Path, *args: object) -> int:
    return run(["generate", "--model", str(small), "--max-tokens", "10", "--quiet", *map(str, args)])


def test_generate_writes_and_says_where(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert generate(small, TEXT, "-o", tmp_path / "hello.wav", "--seed", 3) == 0
    assert soundfile.info(tmp_path / "hello.wav").frames == 10 * 512
    assert f"{tmp_path / 'hello.wav'}: 0.12 s of audio, seed 3" in capsys.readouterr().out
    assert generate(small, TEXT, "-o", tmp_path / "again.wav", "--seed", 3) == 0
    assert (tmp_path / "again.wav").read_bytes() == (tmp_path / "hello.wav").read_bytes()


def test_several_scripts_from_arguments_and_files(small: Path, tmp_path: Path):
    (tmp_path / "scene.txt").write_text(TEXT + "\n", encoding="utf-8")
    assert generate(small, TEXT, "--file", tmp_path / "scene.txt", "-o", tmp_path / "x.flac", "--seed", 0) == 0
    one, _ = soundfile.read(tmp_path / "x-1.flac")
    two, _ = soundfile.read(tmp_path / "x-2.flac")
    np.testing.assert_array_equal(one, two)


def test_a_voice_with_its_transcript(small: Path, tmp_path: Path):
    soundfile.write(tmp_path / "me.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 20_000), 22_050)
    prompt = ("--audio-prompt", tmp_path / "me.wav", "--prompt-text", "[S1] What I say.")
    assert generate(small, TEXT, *prompt, "-o", tmp_path / "x.wav", "--seed", 0) == 0
    assert generate(small, "[S1] What I say. " + TEXT, *prompt[:2], "-o", tmp_path / "y.wav", "--seed", 0) == 0
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()


class Stdin(io.TextIOWrapper):
    def isatty(self) -> bool:
        return False


def test_standard_input(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Stdin(io.BytesIO(TEXT.encode() + b"\n")))
    assert generate(small, "-o", tmp_path / "x.ogg") == 0
    assert (tmp_path / "x.ogg").exists()


def damaged(tmp_path: Path) -> dict[str, Path]:
    files = {name: tmp_path / f"{name}.wav" for name in ("corrupt", "silent", "nothing")}
    files["corrupt"].write_bytes(b"RIFFnothing that was ever a sound")
    soundfile.write(files["silent"], np.zeros(9000), 44_100)
    soundfile.write(files["nothing"], np.zeros(0), 44_100)
    files["raw"] = tmp_path / "voice.raw"
    files["raw"].write_bytes(b"\x01\x02" * 500)
    files["latin"] = tmp_path / "latin.txt"
    files["latin"].write_bytes("[S1] Caf\u00e9.".encode("latin-1"))
    files["long"] = tmp_path / "long.txt"
    files["long"].write_text("[S1] " + "x" * MAX_SCRIPT_BYTES)
    files["pipe"] = tmp_path / "pipe"
    os.mkfifo(files["pipe"])
    os.mkfifo(tmp_path / "pipe.wav")
    files["loop"] = tmp_path / "loop.wav"
    files["loop"].symlink_to("loop.wav")
    files["folder"] = tmp_path / "folder"
    (files["folder"] / "x.png").mkdir(parents=True)
    return files


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["[S1]"], "no words"),
        ([""], "script is empty"),
        (["Hello."], "not with a speaker tag"),
        (["[S1] " + "x" * 2000], "--truncate"),
        (["[S1] a\x00b"], "padding"),
        (["[S1] a\udcffb"], "not valid Unicode"),
        (["--file", "{latin}"], "is not UTF-8 text (byte 0xe9 at 8)"),
        (["--file", "missing.txt"], "Cannot read missing.txt"),
        (["--file", "{pipe}"], "not a regular file"),
        (["--file", "/dev/zero"], "not a regular file"),
        (["--file", "{long}"], "larger than 1,000,000 bytes"),
        ([TEXT, "--audio-prompt", "missing.wav"], "no audio file missing.wav"),
        ([TEXT, "--audio-prompt", "{corrupt}"], "not a readable audio file"),
        ([TEXT, "--audio-prompt", "{silent}"], "silent"),
        ([TEXT, "--audio-prompt", "{nothing}"], "holds no samples"),
        ([TEXT, "--prompt-text", "[S1] Who?"], "give --audio-prompt"),
        (["", "--audio-prompt", "{corrupt}", "--prompt-text", "[S1] Who?"], "script is empty"),
        ([TEXT, "--audio-prompt", "{corrupt}", "--prompt-text", ""], "script is empty"),
        ([TEXT, "--audio-prompt", "{raw}"], "not a readable audio file"),
        ([TEXT, TEXT, "-o", "/"], "suffix must be one of"),
        ([TEXT, "-o", "x" * 300 + ".wav"], "Cannot write"),
        ([TEXT, TEXT, "-o", "x" * 250 + ".wav"], "File name too long"),
        ([TEXT, "-o", "a\nb.doc"], "Cannot write a b.doc"),
        ([TEXT, "-o", "{loop}"], "Too many levels of symbolic links"),
        ([TEXT, "-o", "{pipe}.wav"], "not a regular file"),
        ([TEXT, "-o", "{folder}/x.wav", "--picture"], "x.png: it is a directory"),
        ([TEXT, "--temperature", "-1"], "temperature is -1"),
        ([TEXT, "--top-p", "2"], "top_p is 2"),
        ([TEXT, "--max-tokens", "9999"], "room for 1 to 3056"),
        ([TEXT, "--seed", "-3"], "seed is -3"),
        ([TEXT, "-o", "/no/such/folder/x.wav"], "there is no directory /no/such/folder"),
        ([TEXT, "-o", "x.doc"], "suffix must be one of"),
        ([TEXT, "--model", "/no/such/model"], "no file or directory"),
    ],
)
def test_bad_input_is_a_sentence_and_exit_code_2(
    small: Path, tmp_path: Path, args: list[str], words: str, capsys: pytest.CaptureFixture, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    files = damaged(tmp_path)
    before = sorted(os.listdir(tmp_path))
    assert generate(small, "-o", "out.wav", *(arg.format(**files) if "{" in arg else arg for arg in args)) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.startswith("dia-jax: ")
    assert message.count("\n") == 1
    assert "Traceback" not in message
    assert sorted(os.listdir(tmp_path)) == before


def test_names_that_are_not_utf8(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    odd = tmp_path / os.fsdecode(b"\xff\xe9")
    soundfile.write(tmp_path / "me.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 20_000), 22_050)
    (tmp_path / "me.wav").rename(odd.with_suffix(".wav"))
    odd.with_suffix(".txt").write_text(TEXT)
    inputs = ("--file", odd.with_suffix(".txt"), "--audio-prompt", odd.with_suffix(".wav"))
    for suffix in (".wav", ".flac", ".ogg", ".mp3"):
        output = odd.with_name(odd.name + "2").with_suffix(suffix)
        assert generate(small, *inputs, "-o", output, "--picture") == 0
        assert f"\\udcff\\udce92{suffix}: 0.12 s of audio" in capsys.readouterr().out
        assert output.exists()
        assert output.with_suffix(".png").exists()
    assert generate(small, TEXT, "-o", odd.with_name(odd.name + "3.wav"), "--stream") == 0
    assert generate(small, TEXT, "-o", odd.with_suffix(".doc")) == 2


@pytest.mark.parametrize("options", [(), ("--stream",), ("--picture",)])
def test_a_name_that_cannot_be_written_is_found_before_the_work(
    small: Path, tmp_path: Path, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
):
    loaded = []
    load = Dia.from_pretrained
    monkeypatch.setattr(Dia, "from_pretrained", lambda *args, **kwargs: loaded.append(1) or load(*args, **kwargs))
    for length in (240, 254, 255, 256):  # a system's limit is 255 bytes, of the temporary name too
        loaded.clear()
        output = tmp_path / ("x" * (length - 4) + ".wav")
        assert generate(small, TEXT, "-o", output, *options) == (0 if loaded else 2)
        assert output.name in os.listdir(tmp_path) if loaded else not any(tmp_path.iterdir())
        for path in tmp_path.iterdir():
            path.unlink()
    assert not loaded


def test_an_output_that_is_a_link_replaces_its_target(small: Path, tmp_path: Path):
    (tmp_path / "elsewhere").mkdir()
    for name in ("x.wav", "x.png"):
        (tmp_path / "elsewhere" / name).write_text("old")
        (tmp_path / name).symlink_to(f"elsewhere/{name}")
    (tmp_path / "new.wav").symlink_to("elsewhere/new.wav")  # a target that is not there yet
    assert generate(small, TEXT, "-o", tmp_path / "x.wav", "--picture") == 0
    assert generate(small, TEXT, "-o", tmp_path / "new.wav", "--stream") == 0
    assert all((tmp_path / name).is_symlink() for name in ("x.wav", "x.png", "new.wav"))
    assert soundfile.info(tmp_path / "elsewhere" / "x.wav").frames == 10 * 512
    assert soundfile.info(tmp_path / "elsewhere" / "new.wav").frames == 10 * 512
    assert (tmp_path / "elsewhere" / "x.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_too_much_on_standard_input(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    with open("/dev/zero", "rb") as zeros:
        monkeypatch.setattr(sys, "stdin", Stdin(zeros))
        assert generate(small) == 2
    assert "standard input is longer than 1,000,000 bytes" in capsys.readouterr().err


def test_a_full_disk_is_one_sentence(tmp_path: Path):
    code = (
        "import resource, sys; from dia_jax.cli import run; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY)); "
        f"sys.exit(run(['make-untrained', {str(tmp_path / 'small')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("dia-jax: Cannot write")
    assert result.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_what_is_printed_is_one_line_and_never_fails(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    assert printable("tab\t, caf\u00e9 \udcff\n\x1b[1m") == r"tab\t, caf\u00e9 \udcff\n\x1b[1m".replace(
        r"\u00e9", "\u00e9"
    )
    with monkeypatch.context() as patch:
        ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        patch.setattr(sys, "stdout", ascii_only)
        patch.setattr(sys, "stderr", None)
        say("caf\u00e9 \udcff")
        say("nowhere", error=True)
        ascii_only.seek(0)
    assert ascii_only.read() == "caf\\xe9 \\udcff\n"

    def fail(self):
        raise RuntimeError("one line\n\n  another")

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Generate, "run", fail)
        assert generate(small, TEXT) == 1
    assert capsys.readouterr().err == "dia-jax: RuntimeError: one line another\n"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        assert generate(small, TEXT, TEXT, "-o", tmp_path / "x.wav", "--batch-size", "1") == 1
    assert capsys.readouterr().err == "dia-jax: OSError: [Errno 28] No space left on device\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-1.wav", "x-2.wav"]


def test_a_long_voice_prompt_is_refused_by_its_header(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    soundfile.write(tmp_path / "long.flac", np.zeros((61 * 8000, 8)), 8000)
    assert generate(small, TEXT, "--audio-prompt", tmp_path / "long.flac") == 2
    assert "has 61.0 s of audio according to its header; at most 60 s are read" in capsys.readouterr().err


def test_dtypes_are_those_of_checkpoints():
    assert get_args(Dtype) == tuple(DTYPES)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert generate(small, TEXT, "-o", tmp_path / "locked" / "x.wav") == 2
    assert "no permission" in capsys.readouterr().err


def test_a_stream_writes_what_generate_writes(small: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture):
    script = ["generate", "[S1] Hello. [S2]", "--model", str(small), "--max-tokens", "60", "--seed", "3", "--quiet"]
    assert run([*script, "--output", str(tmp_path / "whole.wav")]) == 0
    assert run([*script, "--stream", "--output", str(tmp_path / "grown.wav")]) == 0
    assert (tmp_path / "grown.wav").read_bytes() == (tmp_path / "whole.wav").read_bytes()
    capfdbinary.readouterr()
    assert run([*script, "--stream", "--output", "-"]) == 0
    out, err = capfdbinary.readouterr()
    samples, _ = soundfile.read(tmp_path / "whole.wav", dtype="int16")
    np.testing.assert_array_equal(np.frombuffer(out, "<i2"), samples)
    assert b"first sound after" in err


def test_a_stream_does_not_touch_what_is_there(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    target = tmp_path / "mine.wav"
    target.write_bytes(b"mine")
    for output, words in ((target, "exists"), (tmp_path / "x.flac", "only a .wav")):
        arguments = ["generate", "[S1] Hello.", "--model", str(small), "--stream", "--output", str(output)]
        assert run(arguments) == 2
        assert words in capsys.readouterr().err
    assert run(["generate", "[S1] A.", "[S1] B.", "--model", str(small), "--stream", "--output", "-"]) == 2
    assert target.read_bytes() == b"mine"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_keeps_the_files_that_are_finished(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    save = Dia.save_audio

    def interrupted(self, path, audio):
        save(self, path, audio)
        raise KeyboardInterrupt

    monkeypatch.setattr(Dia, "save_audio", interrupted)
    arguments = [
        "generate",
        "[S1] Longer, so first.",
        "[S1] B.",
        "--model",
        str(small),
        "--max-tokens",
        "20",
        "--quiet",
    ]
    assert run([*arguments, "--batch-size", "1", "--output", str(tmp_path / "a.wav")]) == 130
    assert "1 of 2 clips were finished" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a-1.wav"]


def test_int8_from_the_command_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(["convert", str(small), str(tmp_path / "int8"), "--quantize", "int8", "--verify", "--quiet"]) == 0
    assert run(["info", str(tmp_path / "int8")]) == 0
    assert "int8" in capsys.readouterr().out
    for model, options in ((small, ["--quantize", "int8"]), (tmp_path / "int8", ["--codec", str(small / "dac")])):
        arguments = ["generate", "[S1] Hi.", "--model", str(model), "--max-tokens", "20", "--seed", "1", "--quiet"]
        assert run([*arguments, *options, "--output", str(tmp_path / f"{model.name}.wav")]) == 0
    assert (tmp_path / "int8.wav").read_bytes() == (tmp_path / f"{small.name}.wav").read_bytes()


def test_convert_and_info(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    assert run(["convert", str(small), str(tmp_path / "orbax"), "--verify", "--quiet"]) == 0
    assert "dia from transformers to orbax layout, 47 tensors, every tensor verified" in capsys.readouterr().out
    assert run(["info", str(tmp_path / "orbax")]) == 0
    out = capsys.readouterr().out
    assert "dia, orbax layout" in out
    assert "variant: 0626" in out
    assert f"jax {jax.__version__}" in out
    assert run(["convert", str(small), str(tmp_path / "orbax")]) == 2
    assert "exists already" in capsys.readouterr().err


def test_arguments_that_do_not_parse_exit_with_2():
    for args in (["generate", "--temperature", "warm"], ["nonsense"], ["convert"]):
        with pytest.raises(SystemExit) as error:
            run(args)
        assert error.value.code == 2


@pytest.mark.parametrize(
    "command", ["generate", "convert", "prepare", "train", "train-codec", "info", "make-untrained"]
)
def test_help_teaches_by_example(command: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as error:
        run([command, "--help"])
    assert error.value.code == 0
    assert f"dia-jax {command}" in capsys.readouterr().out.split("usage:")[1].split("\n", 1)[1]


def test_the_core_imports_neither_torch_nor_transformers():
    code = (
        "import sys, dia_jax, dia_jax.__main__, dia_jax.untrained; print({'torch', 'transformers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_reader_that_has_enough_ends_the_command_silently():
    command = f"{sys.executable} -m dia_jax generate --help | true; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.returncode in (0, 1)  # 0 if all of it fitted into the pipe


def test_the_convert_scripts(small: Path, tmp_path: Path):
    scripts = Path(__file__).parent.parent / "convert"
    steps = (
        ("to_orbax.py", small, tmp_path / "a", ()),
        ("from_orbax.py", tmp_path / "a", tmp_path / "b", ("--layout=reference",)),
    )
    for script, source, target, options in steps:
        command = [sys.executable, scripts / script, source, target, "--verify", *options]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "every tensor verified" in result.stdout
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_a_picture_beside_the_sound(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    assert generate(small, TEXT, "-o", tmp_path / "x.wav", "--seed", 0, "--picture") == 0
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert generate(small, TEXT, "-o", tmp_path / "y.wav", "--picture", "--stream") == 2
    assert "leave one out" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert generate(small, TEXT, "-o", tmp_path / "z.wav", "--picture") == 2
    assert "dia_jax[picture]" in capsys.readouterr().err
    assert not (tmp_path / "z.wav").exists()


def test_from_recordings_to_an_adapter_that_speaks(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    for i in range(2):
        soundfile.write(recordings / f"{i}.wav", 0.3 * np.sin(np.arange(22_050) * (0.03 + 0.01 * i)), 44_100)
        (recordings / f"{i}.txt").write_text("[S1] A tone." if i else "A tone.")
    assert run(["prepare", str(recordings), str(tmp_path / "data"), "--codec", str(small / "dac"), "--quiet"]) == 0
    told = capsys.readouterr().out
    assert "1 clips" in told
    assert "0.wav: The script begins with 'A tone.', not with a speaker tag" in told
    command = ["train", str(tmp_path / "run"), str(tmp_path / "data"), "--base", str(small), "--lora-rank", "2"]
    command += ["--steps", "2", "--rows", "128", "--dtype", "float32", "--save-every", "1", "--quiet"]
    assert run([*command, "--sample", TEXT, "--codec", str(small / "dac")]) == 0
    assert (tmp_path / "run" / "samples" / "0000002-0.wav").exists()
    assert generate(small, TEXT, "-o", tmp_path / "x.wav", "--adapter", tmp_path / "run" / "adapter") == 0
    assert run([*command, "--learning-rate", "1"]) == 2
    assert "learning_rate was 0.0001 and is 1.0" in capsys.readouterr().err
    assert run([*command, "--config", str(small / "config.json")]) == 2
    assert run(["train", str(tmp_path / "other"), str(tmp_path / "nothing"), "--base", str(small)]) == 2
    assert "dia-jax prepare" in capsys.readouterr().err


def test_train_codec_from_the_command_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "recordings").mkdir()
    soundfile.write(tmp_path / "recordings" / "a.wav", 0.3 * np.sin(np.arange(44_100) * 0.03), 44_100)
    command = ["train-codec", str(tmp_path / "run"), str(tmp_path / "recordings"), "--base", str(small / "dac")]
    command += ["--decoder-only"]
    assert run([*command, "--steps", "1", "--clips", "1", "--frames", "8", "--quiet"]) == 0
    assert generate(small, TEXT, "-o", tmp_path / "x.wav", "--codec", tmp_path / "run" / "codec") == 0
    assert run([*command, "--clips", "0"]) == 2
    assert "clips is 0" in capsys.readouterr().err
