"""Files that appear whole or not at all. Knows nothing of what is in them."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path`, of its suffix, that takes its name if all goes well and vanishes if not.

    A file that was there is replaced; one that is new gets the rights that the process gives to new files.

    Raises:
        OSError: the folder cannot be written.
    """
    path = Path(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.absolute().parent)
    os.close(handle)
    try:
        os.chmod(name, 0o666 & ~_umask())
        yield Path(name)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text, in place of what was there, by `new_file`."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def visible(folder: Path) -> set[str]:
    """Names in a folder, but for those with a dot in front: our temporary files, and what systems leave."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
