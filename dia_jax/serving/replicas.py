"""Replicas of the server on a Ray cluster: the same application, once a device, behind Ray Serve's proxy.

Knows Ray and its options. Knows no routes and no limits: who may come in is decided by each replica's own desk, and
which replica is asked, when a dead one is replaced and how many there are by Ray.
"""

import os
from pathlib import Path
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve  # pyrefly: ignore[missing-import]

from dia_jax.hub import TINY
from dia_jax.mesh import local_mesh
from dia_jax.model import Quantize
from dia_jax.pipeline import Dia
from dia_jax.serving.app import create_app
from dia_jax.serving.gate import log_to_stderr
from dia_jax.serving.service import Service
from dia_jax.serving.settings import KEYS, Settings, read_keys

SPARE_REQUESTS = 200
"""That a replica takes beyond its slots and its queue: those it refuses, and /health, /metrics and the page."""
STOP_SECONDS = 10.0
"""That a replica has to end in, after what runs on it."""


class Args(BaseModel):
    """The `args` of the application in Ray Serve's YAML file.

    Attributes:
        model, codec, dtype, quantize, revision: as in `Dia.from_pretrained`. A path is one on every node.
        devices_per_clip: accelerators that share each clip; a replica has to ask Ray for as many.
        voices: folder of .voice files on every node; "" for none.
        aliases, slots, queue, queue_seconds, drain_seconds, warmup: of each replica, as in `Settings`.
    """

    model_config = ConfigDict(extra="forbid")

    model: str = TINY
    codec: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    quantize: Quantize | None = None
    revision: str | None = None
    devices_per_clip: int = Field(1, ge=1)
    voices: str = ""
    aliases: dict[str, str] = {}
    slots: int = Settings.slots
    queue: int = Settings.queue
    queue_seconds: float = Settings.queue_seconds
    drain_seconds: float = Settings.drain_seconds
    warmup: bool = True

    @property
    def settings(self) -> Settings:
        """Without uploads: a voice would be known to one replica only."""
        return Settings(
            name=self.model if self.model == TINY else Path(self.model).name,
            slots=self.slots,
            queue=self.queue,
            queue_seconds=self.queue_seconds,
            drain_seconds=self.drain_seconds,
            voices=self.voices,
            aliases=self.aliases,
            # Of the replica's environment: what is in the YAML file is shown on Ray's dashboard.
            api_keys=read_keys(os.environ.get(KEYS, "")),
            warmup=self.warmup,
        )

    def load(self) -> Dia:
        """The model, on the devices that Ray gave to this process."""
        return Dia.from_pretrained(
            self.model,
            codec=self.codec,
            dtype=self.dtype,
            quantize=self.quantize,
            revision=self.revision,
            mesh=local_mesh(self.devices_per_clip),
        )


def build(args: Args) -> serve.Application:
    """The application, for `import_path: dia_jax.serving.replicas:build`.

    How many replicas there are is an option of the deployment: a change of `args` would start all of them anew.

    Raises:
        ServingError: an argument cannot be used.
    """
    args.settings.check()
    deployment = serve.deployment(
        name="Dia",
        # The replica itself refuses, with 429 and Retry-After. Ray would let requests wait without an end.
        max_ongoing_requests=args.slots + args.queue + SPARE_REQUESTS,
        # Ray sends no more requests to a replica that is to stop, and waits for those that it has.
        graceful_shutdown_timeout_s=args.drain_seconds + STOP_SECONDS,
    )
    return deployment(serve.ingress(lambda: create_app(Service(args.load, args.settings)))(_Replica)).bind()


class _Replica:
    """What Ray asks a replica for, beside requests.

    Attributes:
        app: the application; Ray sets it.
    """

    app: FastAPI

    def __init__(self) -> None:
        log_to_stderr()  # which Ray keeps

    async def check_health(self) -> None:
        """Raises what the model could not be loaded for.

        Ray sends requests to a replica after its first check, which therefore waits until the model is loaded.
        """
        service: Service = self.app.state.service
        await service.opened.wait()
        if service.failure is not None:
            raise service.failure
