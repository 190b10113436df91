"""The commands serve and ui: a server for Dia, and the same with its page opened in a browser.

Knows options and what is printed; `serving` does the work.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dia_jax.cli.common import Dtype, load_model, say
from dia_jax.config import DiaError, Variant
from dia_jax.files import read_text_file
from dia_jax.hub import TINY
from dia_jax.model import Quantize


@dataclasses.dataclass(frozen=True)
class Serve:
    """Serve speech over HTTP, as OpenAI does, with a page to try it.

    OpenAI's clients need another base URL and nothing else. Requests are decoded together, and their sound is sent
    while it is made. SIGTERM lets what runs be finished. The page is at /, the description at /openapi.json, and what
    Prometheus reads at /metrics.

    Try:

    dia-jax serve

    dia-jax serve --model nari-labs/Dia-1.6B-0626 --voices voices/ --slots 32 --host 0.0.0.0 --api-keys keys.txt

    curl localhost:8000/v1/audio/speech --json '{"input": "Good morning.", "voice": "alloy"}' --output hello.mp3
    """

    model: str = TINY
    """A hub repo such as nari-labs/Dia-1.6B-0626, or a local directory or file; tiny is the voice in the package."""
    codec: str | None = None
    """The same for DAC; by default the model's own dac/ folder, or descript/dac_44khz."""
    voices: Path | None = None
    """A folder of .voice files, which clients name by their file names. dia-jax voice makes one."""
    alias: tuple[str, ...] = ()
    """Further names of voices, as alloy=anna. Otherwise OpenAI's names are dealt out."""
    host: str = "127.0.0.1"
    """Where to listen; 0.0.0.0 is for everybody who can reach this machine."""
    port: int = 8000
    """0 takes a free one."""
    slots: int | None = None
    """Clips that are decoded at the same time; by default 8 on a CPU and 32 elsewhere."""
    queue: int = 32
    """Requests that may wait for a slot. Further ones are answered with 429, and when to try again."""
    queue_seconds: float = 300.0
    """How long a request may wait for a slot."""
    drain_seconds: float = 30.0
    """How long what runs may go on after SIGTERM."""
    max_script_bytes: int = 50_000
    """The longest script."""
    allow_uploads: bool = False
    """Let clients add voices; they are kept in the folder uploaded of --voices."""
    max_upload_bytes: int = 10_000_000
    """The largest recording."""
    max_voices: int = 100
    """How many voices clients may add."""
    api_keys: Path | None = None
    """A file with one key in each line; without, DIA_JAX_API_KEYS, keys with commas between. None lets everybody in."""
    cors_origin: tuple[str, ...] = ()
    """Pages of other origins that may use the server, such as https://example.org."""
    warmup: bool = True
    """Compile before the first request, so that none waits; the result is kept for the next start."""
    log_texts: bool = False
    """Log what is spoken."""
    dtype: Dtype | None = None
    """The dtype of the weights; by default what suits the device."""
    quantize: Quantize | None = None
    """Keep the kernels in int8."""
    adapter: Path | None = None
    """A directory written by dia-jax train --lora-rank, to be merged into the model."""
    variant: Variant | None = None
    """The model's behaviour, where its config states the wrong one."""
    devices_per_clip: int = 1
    """Accelerators that share each clip."""
    revision: str | None = None
    """A branch, tag or commit of the model's hub repo."""
    local_files_only: bool = False
    """Use the hub's cache only, without going online."""
    quiet: bool = False
    """No progress bars."""

    def run(self) -> None:
        self._serve(lambda address: None)

    def _serve(self, on_ready: Callable[[str], None]) -> None:
        try:
            from dia_jax.serving.gate import log_to_stderr
            from dia_jax.serving.server import serve
            from dia_jax.serving.service import Service
            from dia_jax.serving.settings import Settings
        except ImportError as error:
            raise DiaError(f"The server needs {error.name}: pip install 'dia_jax[serve]'.") from None
        import jax

        from dia_jax.mesh import local_mesh

        settings = Settings(
            name=self.model if self.model == TINY else Path(self.model).name,
            slots=(8 if jax.default_backend() == "cpu" else 32) if self.slots is None else self.slots,
            voices="" if self.voices is None else str(self.voices),
            aliases=self._aliases(),
            api_keys=self._keys(),
            cors_origins=self.cors_origin,
            **{
                name: getattr(self, name)
                for name in (
                    "queue", "queue_seconds", "drain_seconds", "max_script_bytes", "allow_uploads", "max_upload_bytes",
                    "max_voices", "warmup", "log_texts",
                )
            },
        )  # fmt: skip
        log_to_stderr()

        def load() -> Any:
            dia = load_model(self, mesh=local_mesh(self.devices_per_clip))
            voices = ", ".join([*dia.voices, *([str(self.voices)] if self.voices else [])]) or "none of its own"
            say(f"Loaded {self.model} on {jax.devices()[0].device_kind}; voices: {voices}.", error=True)
            if self.warmup:
                say(
                    f"Compiling for {settings.slots} slots: a minute or two at the first start, seconds later.",
                    error=True,
                )
            return dia

        def tell(address: str) -> None:
            say(f"Ready: {address} (page), {address}/v1 (base URL for OpenAI's clients).")
            on_ready(address)

        serve(Service(load, settings), host=self.host, port=self.port, on_ready=tell)

    def _aliases(self) -> dict[str, str]:
        aliases = {}
        for entry in self.alias:
            name, sign, voice = (part.strip() for part in entry.partition("="))
            if not (name and sign and voice):
                raise DiaError(f"--alias {entry!r} is not of the form NAME=VOICE, such as alloy=anna.")
            aliases[name] = voice
        return aliases

    def _keys(self) -> tuple[str, ...]:
        from dia_jax.serving.settings import KEYS, read_keys

        if self.api_keys is None:
            return read_keys(os.environ.get(KEYS, ""))
        keys = read_keys(read_text_file(self.api_keys, limit=1_000_000))
        if not keys:
            raise DiaError(f"{self.api_keys} holds no key; write one in each line.")
        return keys


@dataclasses.dataclass(frozen=True)
class Ui(Serve):
    """Open the server's page in a browser: type a script, hear it while it is made.

    This is dia-jax serve, with the same options.

    Try:

    dia-jax ui

    dia-jax ui --model nari-labs/Dia-1.6B-0626 --voices voices/ --allow-uploads
    """

    port: int = 0
    """0 takes a free one."""

    def run(self) -> None:
        import threading
        import webbrowser

        def show(address: str) -> None:
            if not webbrowser.open(address):
                say("No browser could be opened; open the page yourself.", error=True)

        # In a thread: a browser of the terminal keeps this call, and waits for the server.
        self._serve(lambda address: threading.Thread(target=show, args=(address,), daemon=True).start())
