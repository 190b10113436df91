"""class Dia at its doors: what goes in, what comes out, what is refused; and the hub, played by a local server."""

import contextlib
import http.server
import json
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from dia_jax import CheckpointError, Dia, DiaError, HubError, SettingError
from dia_jax.untrained import make_untrained

TEXT = "[S1] Hello. [S2] Hi there."
FEW = {"max_tokens": 12, "seed": 0}


def voice(seconds: float = 0.5, rate: int = 22_050) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, int(seconds * rate))


def test_one_for_a_str_and_a_list_for_a_list(dia: Dia):
    codes = dia.generate_codes(TEXT, **FEW)
    assert codes.shape == (12, 9)
    assert codes.dtype == np.int32
    assert codes.min() >= 0
    assert codes.max() < 1024
    many = dia.generate_codes([TEXT], **FEW)
    assert isinstance(many, list)
    np.testing.assert_array_equal(many[0], codes)
    audio = dia.generate(TEXT, **FEW)
    assert audio.shape == (12 * 512,)
    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, dia.decode_codes(codes))
    np.testing.assert_array_equal(dia.generate([TEXT, TEXT], **FEW)[1], audio)


def test_seeds(dia: Dia):
    by_int = dia.generate_codes(TEXT, max_tokens=12, seed=7)
    np.testing.assert_array_equal(by_int, dia.generate_codes(TEXT, max_tokens=12, seed=jax.random.key(7)))
    np.testing.assert_array_equal(by_int, dia.generate_codes([TEXT] * 2, max_tokens=12, seed=[1, 7])[1])
    keys = jax.vmap(jax.random.key)(np.arange(6, 8, dtype=np.uint32))
    np.testing.assert_array_equal(by_int, dia.generate_codes([TEXT] * 2, max_tokens=12, seed=keys)[1])
    np.testing.assert_array_equal(by_int, dia.generate_codes([TEXT] * 2, max_tokens=12, seed=jnp.arange(6, 8))[1])
    np.testing.assert_array_equal(by_int, dia.generate_codes(TEXT, max_tokens=12, seed=np.int64(7)))
    assert not np.array_equal(by_int, dia.generate_codes(TEXT, max_tokens=12, seed=8))
    drawn = dia.generate_codes([TEXT] * 2, max_tokens=12)
    assert not np.array_equal(*drawn)


def test_prompts_of_every_kind_are_the_same_prompt(dia: Dia, tmp_path: Path):
    samples = voice()
    soundfile.write(tmp_path / "voice.wav", samples, 22_050, subtype="FLOAT")
    codes = dia.encode_audio(tmp_path / "voice.wav")
    assert codes.shape == (44, 9)  # 0.5 s in whole frames of 512 samples
    expected = dia.generate_codes(TEXT, audio_prompt=codes, **FEW)
    for prompt in (
        tmp_path / "voice.wav",
        str(tmp_path / "voice.wav"),
        (samples.astype(np.float32), 22_050),
        (np.stack([samples, samples], axis=1).astype(np.float32), 22_050),
    ):
        np.testing.assert_array_equal(dia.generate_codes(TEXT, audio_prompt=prompt, **FEW), expected)
    assert not np.array_equal(dia.generate_codes(TEXT, **FEW), expected)
    mixed = dia.generate_codes([TEXT, TEXT], audio_prompt=[None, codes], **FEW)
    np.testing.assert_array_equal(mixed[1], expected)
    shared = dia.generate_codes([TEXT, TEXT], audio_prompt=codes, **FEW)
    np.testing.assert_array_equal(shared[0], expected)


def test_none_is_all_that_fits(dia: Dia):
    """And the budget counts new frames: the prompt takes from it, the delay and the start row are not the user's."""
    prompt = np.random.default_rng(0).integers(0, 1024, (3000, 9))
    assert dia.config.frame_budget == 3056
    codes = dia.generate_codes(TEXT, audio_prompt=prompt, temperature=0.0)
    assert 0 < len(codes) <= 56
    assert len(dia.generate_codes(TEXT, audio_prompt=prompt[:2999], max_tokens=57, temperature=0.0)) <= 57
    with pytest.raises(SettingError, match=r"max_tokens is 57; .* room for 1 to 56 new frames beside a prompt of 3000"):
        dia.generate_codes(TEXT, audio_prompt=prompt, max_tokens=57)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": ""}, "is empty"),
        ({"text": []}, "list is empty"),
        ({"text": [TEXT, "no tag"]}, "speaker tag"),
        ({"text": "[S1] " + "x" * 2000}, "truncate=True"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 3057}, "room for 1 to 3056 new frames"),
        ({"max_tokens": 2.5}, "whole number of frames"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0}, "top_p is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"cfg_scale": -0.5}, "cfg_scale is -0.5"),
        ({"cfg_scale": float("inf")}, "cfg_scale is inf"),
        ({"cfg_filter_top_k": 0}, "cfg_filter_top_k is 0"),
        ({"cfg_filter_top_k": 10**400}, "a whole number from 1 up"),
        ({"cfg_filter_top_k": 3.5}, "cfg_filter_top_k is 3.5"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"cfg_scale": 1e39}, "cfg_scale is 1e\\+39"),
        ({"text": None}, "must be a string"),
        ({"audio_prompt": [[1, 2], [3]]}, "1 scripts but 2 audio prompts"),
        ({"audio_prompt": [[[1, 2], [3]]]}, "ragged"),
        ({"audio_prompt": (np.ones(44100 * 40, np.float32), 44100)}, "3446 frames long"),
        ({"seed": jax.random.key(0, impl="rbg")}, "scalar one of threefry2x32"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"seed": [1, 2]}, "1 scripts but 2 seeds"),
        ({"audio_prompt": [None, None]}, "1 scripts but 2 audio prompts"),
        ({"audio_prompt": "missing.wav"}, "no audio file missing.wav"),
        ({"audio_prompt": np.zeros(44100, np.float32)}, r"pass the pair \(samples, rate\)"),
        ({"audio_prompt": (np.zeros(44100, np.float32), 44100)}, "silent"),
        ({"audio_prompt": (np.zeros(0, np.float32), 44100)}, "no samples"),
        ({"audio_prompt": np.zeros((5, 8), int)}, r"integer array \[frames, 9\]"),
        ({"audio_prompt": np.full((5, 9), 1024)}, "0 .. 1023"),
        ({"audio_prompt": np.zeros((3056, 9), int)}, "3056 frames long"),
    ],
)
def test_what_is_refused(dia: Dia, arguments: dict, words: str):
    with pytest.raises(DiaError, match=words) as error:
        dia.generate_codes(**({"text": TEXT} | arguments))
    assert "\n" not in str(error.value)


def test_truncate_is_the_users_choice(dia: Dia):
    text = "[S1] " + "word " * 300
    assert len(dia.generate_codes(text, truncate=True, **FEW)) == 12


def test_without_the_codec(small: Path):
    dia = Dia.from_pretrained(small, load_codec=False)
    assert len(dia.generate_codes(TEXT, **FEW)) == 12
    with pytest.raises(SettingError, match="load_codec=False"):
        dia.generate(TEXT)


def test_the_codec_can_be_named(small: Path, tmp_path: Path):
    make_untrained(tmp_path / "other", seed=5)
    own, other = Dia.from_pretrained(small), Dia.from_pretrained(small, codec=tmp_path / "other" / "dac")
    codes = np.zeros((3, 9), np.int32)
    assert not np.array_equal(own.decode_codes(codes), other.decode_codes(codes))
    with pytest.raises(CheckpointError, match="holds Dia, not a DAC"):
        Dia.from_pretrained(small, codec=tmp_path / "other")
    with pytest.raises(CheckpointError, match="holds a DAC codec, not Dia"):
        Dia.from_pretrained(small / "dac")


def test_save_audio(dia: Dia, tmp_path: Path):
    dia.save_audio(tmp_path / "x.flac", np.zeros(512, np.float32))
    assert soundfile.info(tmp_path / "x.flac").samplerate == 44100


# --- The hub ---------------------------------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as listing and fetching files takes."""

    root: Path
    asked: list[str]
    commit = "0123456789abcdef0123456789abcdef01234567"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path.startswith("/api/models/"):
            parts = path.removeprefix("/api/models/").split("/")
            return self.send_listing("/".join(parts[:2]), listing="tree" in parts)
        owner, name, _resolve, _revision, *rest = path.strip("/").split("/")
        file = self.root / owner / name / "/".join(rest)
        if not file.is_file():
            return self.send_answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        if self.command == "GET":
            self.asked.append("/".join(rest))
        return self.send_answer(200, file.read_bytes(), {"X-Repo-Commit": self.commit, "ETag": f'"{hash(file)}"'})

    def send_listing(self, repo: str, *, listing: bool):
        folder = self.root / repo
        if not folder.is_dir():
            return self.send_answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        names = [str(p.relative_to(folder)) for p in files]
        data = {"id": repo, "sha": self.commit, "siblings": [{"rfilename": name} for name in names]}
        tree = [
            {"type": "file", "path": n, "size": p.stat().st_size, "oid": "0"} for n, p in zip(names, files, strict=True)
        ]
        return self.send_answer(
            200, json.dumps(tree if listing else data).encode(), {"Content-Type": "application/json"}
        )

    def send_answer(self, status: int, body: bytes, headers: dict[str, str]):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A hub with the repos that `Dia.from_pretrained` knows by name; gives the list of files that were fetched."""
    import huggingface_hub
    from huggingface_hub import constants

    root = tmp_path / "hub"
    dia, codec = root / "nari-labs" / "Dia-1.6B-0626", root / "descript" / "dac_44khz"
    make_untrained(tmp_path / "small")
    codec.parent.mkdir(parents=True)
    (tmp_path / "small" / "dac").rename(codec)
    dia.parent.mkdir(parents=True)
    (tmp_path / "small").rename(dia)
    for name in ("pytorch_model.bin", "dia-v1.pth", "generation_config.json", "README.md"):
        (dia / name).write_bytes(b"the same weights again, or nothing of interest")
    handler = type("Handler", (Hub,), {"root": root, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "__init__", _api_of(endpoint))
    with contextlib.closing(server.socket):
        yield handler
        server.shutdown()


def _api_of(endpoint: str):
    from huggingface_hub import HfApi

    original = HfApi.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **(kwargs | {"endpoint": endpoint}))

    return init


def test_only_what_is_needed_is_fetched_and_then_cached(hub, tmp_path: Path):
    dia = Dia.from_pretrained(cache_dir=tmp_path / "cache")
    assert sorted(set(hub.asked)) == ["config.json", "model.safetensors"]
    assert len(dia.generate(TEXT, **FEW)) == 12 * 512
    asked = len(hub.asked)
    again = Dia.from_pretrained("nari-labs/Dia-1.6B-0626", cache_dir=tmp_path / "cache", local_files_only=True)
    assert len(hub.asked) == asked
    assert again.config == dia.config


def test_a_repo_that_is_not_there(hub, tmp_path: Path):
    with pytest.raises(HubError, match="There is no hub repo nobody/nothing"):
        Dia.from_pretrained("nobody/nothing", cache_dir=tmp_path)
    with pytest.raises(HubError, match="not in the cache, and local_files_only is set"):
        Dia.from_pretrained("nobody/nothing", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(HubError, match="no file or directory here"):
        Dia.from_pretrained("./nothing/here/at/all")
    for name in ("", "a--b/c", "models/x.git", "модель/диа", "x" * 300, "gpt2"):
        with pytest.raises(HubError):
            Dia.from_pretrained(name, cache_dir=tmp_path)
