"""From a name to a local path: the voice in the package, a path that exists, or a hub repo.

Of a repo only the files that are needed are fetched.

Knows file names, because a remote file has no content yet. What the files hold is the business of `checkpoint`.
"""

import os
import socket
from pathlib import Path

import huggingface_hub
from huggingface_hub import errors
from huggingface_hub.utils import validate_repo_id

from dia_jax.config import DiaError, one_line
from dia_jax.files import read_json

TINY = "tiny"
"""The small demonstration voice that comes with the package; a folder of that name is `./tiny`."""

UNREACHABLE = (
    errors.HTTPError,
    errors.LocalEntryNotFoundError,
    errors.OfflineModeIsEnabled,
    ConnectionError,
    TimeoutError,
    socket.gaierror,
)
"""What huggingface_hub raises without a connection. Other kinds of OSError are the local disk's.

`HTTPError` is that of its HTTP library, httpx or httpx2: some of its calls let it through as it is.
"""


class HubError(DiaError):
    """A repo that cannot be had; the message says why."""


def resolve(
    name: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """Finds a checkpoint on disk, or fetches it from the hub.

    Args:
        name: "tiny", a path, or a repo like "nari-labs/Dia-1.6B-0626".
        revision: branch, tag or commit of the repo.
        cache_dir: where the hub's files are kept; huggingface_hub's own place if None.
        local_files_only: look into that cache alone.
        token: for a private or gated repo; see huggingface_hub.

    Returns:
        The path itself, or the folder of the fetched snapshot.

    Raises:
        HubError: it is neither, the hub refuses it, or the cache cannot be written.
    """
    repo = os.fspath(name)
    if repo == TINY:
        return Path(__file__).parent / TINY
    try:
        if repo and Path(repo).exists():
            return Path(repo)
        if repo.count("/") != 1:  # the hub would take "gpt2" too, but nobody has a Dia there
            raise errors.HFValidationError
        validate_repo_id(repo)
    except errors.HFValidationError:
        raise HubError(
            f"{repo!r} is no file or directory here, and no name of a hub repo (owner/name) either."
        ) from None
    except OSError as error:
        raise HubError(f"Cannot look for {repo!r}: {error.strerror}.") from None
    cache = None if cache_dir is None else os.fspath(cache_dir)
    reason = "local_files_only is set"
    if not local_files_only:
        try:
            wanted = _choose(repo, revision=revision, cache_dir=cache, token=token)
            return Path(
                huggingface_hub.snapshot_download(
                    repo, revision=revision, cache_dir=cache, token=token, allow_patterns=wanted
                )
            )
        except errors.GatedRepoError:
            raise HubError(
                f"The hub repo {repo} is gated: accept its terms on its page, then log in or pass a token."
            ) from None
        except errors.RepositoryNotFoundError:
            raise HubError(f"There is no hub repo {repo}, or it is private and the token does not open it.") from None
        except errors.RevisionNotFoundError:
            raise HubError(f"The hub repo {repo} has no revision {revision!r}.") from None
        except UNREACHABLE as error:
            reason = f"the hub cannot be reached ({one_line(error)})"
        except OSError as error:
            place = cache or huggingface_hub.constants.HF_HUB_CACHE
            raise HubError(
                f"{repo} cannot be fetched into the cache {place}: {error.strerror or one_line(error)}; free some "
                "space or name another cache directory."
            ) from None
    # Not snapshot_download: it takes a snapshot of chosen files for an interrupted download of all.
    for file_name in ("config.json", "weights.pth"):
        cached = huggingface_hub.try_to_load_from_cache(repo, file_name, cache_dir=cache, revision=revision)
        if isinstance(cached, str):
            return Path(cached).parent
    raise HubError(f"{repo} is not in the cache, and {reason}; fetch it once while online.")


def _choose(repo: str, *, revision: str | None, cache_dir: str | None, token: str | bool | None) -> list[str]:
    """The files to fetch: a repo may hold the same weights many times over."""
    files = huggingface_hub.HfApi(token=token).list_repo_files(repo, revision=revision)
    wanted = []
    for folder in ("", "dac/"):
        here = [f for f in files if f.startswith(folder) and "/" not in f.removeprefix(folder)]
        wanted += [f for f in here if f == f"{folder}config.json"]
        orbax = [f for f in files if f.startswith(f"{folder}params/")]
        index = next((f for f in here if f.endswith(".index.json")), None)
        if orbax:
            wanted += orbax
        elif index:
            path = huggingface_hub.hf_hub_download(repo, index, revision=revision, cache_dir=cache_dir, token=token)
            index_data = read_json(path)
            weight_map = index_data.get("weight_map") if isinstance(index_data, dict) else None
            shards = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
            wanted += [index, *(f"{folder}{shard}" for shard in shards)]
        else:
            best = ("model.safetensors", ".safetensors", "pytorch_model.bin", ".pth", ".bin")
            wanted += next(([f] for ending in best for f in here if f.endswith(ending)), [])
    return wanted
