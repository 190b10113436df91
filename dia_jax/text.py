"""What a script may contain and how it becomes byte tokens. Knows no model; its limits are handed in.

A script is UTF-8; `[S1]` and `[S2]` become the bytes 1 and 2; 0 is padding (nari-labs/dia, `Dia._encode_text`).
"""

import re

import numpy as np

from dia_jax.config import DiaError

SPEAKER_TAGS = {b"[S1]": b"\x01", b"[S2]": b"\x02"}

NONVERBAL_TAGS = (
    "(laughs)", "(clears throat)", "(sighs)", "(gasps)", "(coughs)", "(singing)", "(sings)", "(mumbles)", "(beep)",
    "(groans)", "(sniffs)", "(claps)", "(screams)", "(inhales)", "(exhales)", "(applause)", "(burps)", "(humming)",
    "(sneezes)", "(chuckle)", "(whistles)",
)  # fmt: skip
"""The sounds that Dia was trained to make; other words in brackets may be read out or do odd things."""


class TextError(DiaError):
    """A script that the model cannot take as it is; the message says what to change."""


def encode_text(text: str, *, max_length: int, vocab_size: int = 256, truncate: bool = False) -> np.ndarray:
    """Turns a script into byte tokens.

    Args:
        text: the script; it must begin with a speaker tag, `[S1]` or `[S2]`.
        max_length: bytes that the model takes (1024 for Dia-1.6B), a speaker tag counted as one.
        vocab_size: bytes from here up are not known to the model.
        truncate: cut a longer script after its last whole character that fits, instead of refusing it.

    Returns:
        uint8 array [length], 1 <= length <= max_length.

    Raises:
        TextError: the script is empty, lacks its first speaker tag, is too long, or holds characters that the model
            has no meaning for (NUL, which is padding; the bytes 1 and 2, which are the tags; lone surrogates; bytes
            outside its vocabulary).
    """
    if not isinstance(text, str):
        raise TextError(f"A script must be a string, not {type(text).__name__}.")
    if not text.strip():
        raise TextError('The script is empty; write something like "[S1] Hello. [S2] Hi there."')
    for char, meaning in (("\x00", "padding"), ("\x01", "the tag [S1]"), ("\x02", "the tag [S2]")):
        if char in text:
            raise TextError(
                f"The script holds the character {char!r} at position {text.index(char)}, which the model reads as "
                f"{meaning}; remove it."
            )
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TextError(
            f"The script holds a character at position {error.start} that is not valid Unicode (a lone surrogate, "
            "often from a file that is not UTF-8); save the text as UTF-8."
        ) from None
    if not data.lstrip().startswith(tuple(SPEAKER_TAGS)):
        raise TextError(
            f"The script begins with {text.strip()[:20]!r}, not with a speaker tag; begin with [S1] (or [S2] to "
            "continue a voice prompt's dialogue)."
        )
    if re.fullmatch(rb"(\[S[12]\]|\s)+", data):
        raise TextError("The script holds speaker tags but no words; write some after the tag.")
    for tag, byte in SPEAKER_TAGS.items():
        data = data.replace(tag, byte)
    if len(data) > max_length:
        if not truncate:
            raise TextError(
                f"The script is {len(data)} bytes long, but the model takes {max_length}; shorten it, split it into "
                "several scripts, or ask for it to be cut (truncate=True, --truncate)."
            )
        data = data[:max_length].decode("utf-8", errors="ignore").encode("utf-8")
    if max(data) >= vocab_size:
        raise TextError(f"A script holds the byte {max(data)}, but this model knows only those below {vocab_size}.")
    return np.frombuffer(data, np.uint8)
