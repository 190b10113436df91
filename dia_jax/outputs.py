"""Where output goes: follows symbolic links, and finds out by trying whether a file can be written there.

Knows nothing of what is written, and leaves the words of an error to its callers.
"""

import contextlib
import errno
import os
import stat
from pathlib import Path

from dia_jax.files import new_file


class _Tried(Exception):
    """Takes the temporary file of a trial away again."""


def follow_links(path: str | os.PathLike) -> Path:
    """The file that a path means: renaming a new file to a symbolic link would replace the link, not its target.

    Raises:
        OSError: no file can have this name.
    """
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a null byte, or a character that the file system's encoding lacks
        raise OSError(errno.EINVAL, "no file can have this name") from None


def check_output(path: str | os.PathLike) -> None:
    """Finds out, before any work is done, whether `files.new_file` can write a file.

    The temporary file is really created, because a file system has more reasons to refuse than can be asked for: the
    length of a name, a read-only mount, a quota. It is removed, and a file that is there already stays as it is.

    Args:
        path: of the file; symbolic links are followed.

    Raises:
        OSError: the file cannot be written; `strerror` says why.
    """
    target = follow_links(path)
    with contextlib.suppress(FileNotFoundError):
        mode = os.stat(target).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
    if not target.parent.is_dir():
        raise OSError(errno.ENOTDIR, f"there is no directory {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(errno.EACCES, f"no permission to write in {target.parent}")
    with contextlib.suppress(_Tried), new_file(target):
        raise _Tried
