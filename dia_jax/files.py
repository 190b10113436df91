"""Files and folders that appear whole or not at all, and text that is read with a limit.

Knows names, locks and sizes. Knows nothing of what the files hold, except that some are JSON.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dia_jax.config import ConfigError, DiaError, one_line

try:
    import fcntl
except ImportError:  # Windows: what a killed process leaves there is not removed
    fcntl = None

MAX_NAME_BYTES = 255
MAX_JSON_BYTES = 64 * 2**20


class FileError(DiaError):
    """A text file that cannot be read; the message says why."""


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_text_file(path: str | os.PathLike, *, limit: int) -> str:
    """Reads a UTF-8 text file.

    Args:
        path: a regular file. Devices and pipes are refused, because they may block or never end.
        limit: the most bytes that it may hold.

    Raises:
        FileError: the file is missing, is not a regular one, is too large or is not UTF-8.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise FileError(f"Cannot read {os.fspath(path)}: it is not a regular file.")
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise FileError(f"Cannot read {os.fspath(path)}: {reason}.") from None
    if len(data) > limit:
        raise FileError(f"Cannot read {os.fspath(path)}: it is larger than {limit:,} bytes.")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FileError(
            f"Cannot read {os.fspath(path)}: it is not UTF-8 text (byte 0x{data[error.start]:02x} at {error.start})."
        ) from None


def read_json(path: str | os.PathLike) -> Any:
    """Parses a JSON file of at most `MAX_JSON_BYTES`.

    Raises:
        ConfigError: the file cannot be read or is not JSON.
    """
    try:
        return parse_json(read_text_file(path, limit=MAX_JSON_BYTES))
    except FileError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"Cannot read {os.fspath(path)} as JSON: {one_line(error)}.") from None


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, with a ValueError for text that is nested too deeply for it."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffix, that takes its name on success and vanishes on failure.

    An existing file is replaced; so is the file that a symbolic link names. What a killed process left of an earlier
    attempt at the same path is removed.

    Raises:
        OSError: the folder cannot be written.
    """
    suffix, target = Path(path).suffix, Path(os.path.realpath(path))
    remove_stale(target, suffix=suffix)
    with _locked(target, suffix=suffix, is_folder=False) as temporary:
        try:
            yield temporary
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`. The caller renames it; what is left of it in the end is removed.

    What a killed process left of an earlier attempt at the same path is removed first.

    Raises:
        OSError: the folder cannot be made.
    """
    remove_stale(path)
    with _locked(path, is_folder=True) as temporary:
        try:
            yield temporary
        finally:
            remove(temporary)


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text, in place of what was there, by `new_file`."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def visible(folder: Path) -> set[str]:
    """The names in a folder that do not begin with a dot, as those of temporary files do."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def temporary_name(path: Path, *, suffix: str = "") -> Path:
    """A random hidden name beside `path` that ends in `suffix`; `remove_stale` recognizes it."""
    return path.with_name(f".{_stem(path, suffix)}.{secrets.token_hex(4)}{suffix}")


def remove_stale(path: Path, *, suffix: str = "") -> None:
    """Removes files and folders with a `temporary_name` of `path` that no living process holds."""
    if fcntl is None:
        return
    pattern = re.compile(rf"\.{re.escape(_stem(path, suffix))}\.[0-9a-f]{{8}}{re.escape(suffix)}")
    with contextlib.suppress(OSError):
        for name in [name for name in os.listdir(path.absolute().parent) if pattern.fullmatch(name)]:
            left = path.absolute().with_name(name)
            with contextlib.suppress(OSError):  # held by its process, or removed meanwhile
                lock = os.open(left, os.O_RDONLY | os.O_NONBLOCK)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    remove(left)
                finally:
                    os.close(lock)


def remove(path: Path) -> None:
    """Removes a file or a folder, if it is there and can be removed."""
    if path.is_symlink() or not path.is_dir():
        with contextlib.suppress(OSError):
            path.unlink()
        return
    for _ in range(20):  # threads of a failed Orbax save may still be writing into it
        shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            return
        time.sleep(0.1)


def _stem(path: Path, suffix: str) -> str:
    """What a temporary name holds of the final one: as much as leaves it within the length of a file name."""
    stem = path.name.removesuffix(suffix)
    while len(os.fsencode(f".{stem}.01234567{suffix}")) > MAX_NAME_BYTES and stem:
        stem = stem[:-1]
    return stem


@contextlib.contextmanager
def _locked(path: Path, *, suffix: str = "", is_folder: bool) -> Iterator[Path]:
    """Makes a file or folder with a `temporary_name`, and holds a lock on it that ends with the process."""
    while True:
        temporary = temporary_name(path, suffix=suffix)
        try:
            # The kernel applies the umask.
            os.mkdir(temporary) if is_folder else open(temporary, "xb").close()
        except FileExistsError:
            continue
        if fcntl is None:
            yield temporary
            return
        lock = os.open(temporary, os.O_RDONLY)
        try:
            with contextlib.suppress(
                OSError
            ):  # some network file systems have no locks; `remove_stale` fails there too
                fcntl.flock(lock, fcntl.LOCK_EX)
            # `remove_stale` of another process may have come between; then there is nothing under this name any more.
            if os.path.exists(temporary):
                yield temporary
                return
        finally:
            os.close(lock)
