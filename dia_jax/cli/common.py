"""What the commands share: types of options, printing, and loading a model."""

import sys
from typing import TYPE_CHECKING, Any, Literal

import tyro
from tqdm import tqdm

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from dia_jax.pipeline import Dia

Positional = tyro.conf.Positional

Dtype = Literal["float32", "bfloat16", "float16"]
"""The names in `checkpoint.DTYPES`, which as keys of a dictionary are no type that the parser could read."""


def load_model(command: Any, *, mesh: "Mesh") -> "Dia":
    """Loads the model that a command's options name, on a mesh."""
    from dia_jax.pipeline import Dia

    names = ("codec", "dtype", "quantize", "adapter", "variant", "revision", "local_files_only")
    options = {name: getattr(command, name) for name in names}
    return Dia.from_pretrained(command.model, mesh=mesh, progress=not command.quiet, **options)


def printable(text: object) -> str:
    r"""Text on one line: control characters, and bytes of file names that are not UTF-8, become escapes: \n, \udcff."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def say(message: object, *, error: bool = False) -> None:
    """Prints one line above the progress bars, whatever is in it.

    Args:
        message: what to print; `printable` is applied to it, and characters that the stream cannot encode are escaped.
        error: print on standard error instead of standard output.

    Raises:
        OSError: the stream cannot be written, such as on a full disk.
    """
    stream = sys.stderr if error else sys.stdout
    if stream is None:  # closed by whoever started the process
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    tqdm.write(printable(message).encode(encoding, "backslashreplace").decode(encoding), file=stream)
