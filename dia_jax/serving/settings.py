"""What whoever runs the server decides. Knows no requests."""

import dataclasses
import re

from dia_jax.config import DiaError, short


class ServingError(DiaError):
    """A setting of the server that cannot be used; the message says which."""


KEYS = "DIA_JAX_API_KEYS"
"""The variable of the environment that may hold API keys, with commas between."""


def read_keys(text: str) -> tuple[str, ...]:
    """API keys, one in each line or with commas between."""
    return tuple(key.strip() for key in text.replace(",", "\n").splitlines() if key.strip())


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits and permissions of a server.

    Attributes:
        name: of the model, as clients see it.
        slots: clips that are decoded at the same time.
        queue: requests that may wait for a slot; further ones are refused.
        queue_seconds: how long one may wait.
        drain_seconds: how long what runs may go on after the server is told to stop.
        max_script_bytes: of a script or input, in UTF-8.
        voices: folder of .voice files; "" for none. Uploads are kept in its folder `uploaded`.
        allow_uploads: whether clients may add voices.
        max_upload_bytes: of a recording.
        max_voices: that clients may add.
        aliases: further names of voices, such as {"alloy": "anna"}; OpenAI's names that are not here are dealt out.
        api_keys: one of which each request must bear; none are needed if there are none.
        cors_origins: pages of other origins that may use the server from a browser.
        warmup: compile before the first request, so that none waits.
        log_texts: whether scripts are logged.
    """

    name: str = "tiny"
    slots: int = 8
    queue: int = 32
    queue_seconds: float = 300.0
    drain_seconds: float = 30.0
    max_script_bytes: int = 50_000
    voices: str = ""
    allow_uploads: bool = False
    max_upload_bytes: int = 10_000_000
    max_voices: int = 100
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    warmup: bool = True
    log_texts: bool = False

    def check(self) -> None:
        """Raises ServingError if a setting cannot be used."""
        for name, least in (
            ("slots", 1),
            ("queue", 0),
            ("max_script_bytes", 1),
            ("max_upload_bytes", 1),
            ("max_voices", 0),
        ):
            if getattr(self, name) < least:
                raise ServingError(f"{name} is {short(getattr(self, name))}; it must be {least} or more.")
        for name in ("queue_seconds", "drain_seconds"):
            if not 0 < getattr(self, name) <= 86_400:
                raise ServingError(f"{name} is {short(getattr(self, name))}; it must be more than 0, a day at most.")
        for origin in self.cors_origins:
            if not re.fullmatch(r"https?://[^/*\s]+", origin):
                raise ServingError(
                    f"The origin {short(origin)} cannot be used; write it as https://example.org, without a path."
                )
        if self.allow_uploads and not self.voices:
            raise ServingError("Uploaded voices need a folder that keeps them: give --voices FOLDER.")
        if any(len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key for key in self.api_keys):
            raise ServingError("An API key must have 8 or more ASCII characters, none of them a space.")
