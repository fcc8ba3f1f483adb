"""Where on this machine a model lies that a recipe names. Nothing is ever fetched.

Looked for, in this order: as written, from the current folder; beside the recipe; in the given folders of
models; in the Hugging Face cache (``models--organisation--name/snapshots/<commit>``, where ``refs/<revision>``
holds a commit; layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache).
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from consortium.errors import BadInput

_HUB_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9_][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][\w./-]{0,199}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_model(
    name: str,
    beside: Path,
    folders: Sequence[Path] = (),
    environment: Mapping[str, str] = os.environ,
    file: bool = False,
) -> Path:
    """The folder (or, with ``file``, the file) that ``name`` means.

    name     a path, or ``organisation/name``, which may end in ``@revision``
    beside   folder of the recipe
    folders  that hold models as ``organisation/name`` or ``name``
    Raises BadInput that lists where it looked.
    """
    if not name or "\0" in name:
        raise BadInput(f"model {name!r}: no name at all; write a folder or organisation/name")
    bare, _, revision = name.partition("@")
    place = Path(os.path.expanduser(name))
    tried = [place.absolute(), beside.absolute() / place]
    if not revision and _HUB_NAME.fullmatch(bare):
        tried += [folder.absolute() / bare for folder in folders]
    for place in dict.fromkeys(map(_tidy, tried)):
        if place.is_file() if file else place.is_dir():
            return place
    cache = hub_cache(environment)
    if not file and _HUB_NAME.fullmatch(bare):
        if (found := _in_cache(cache, bare, revision or "main")) is not None:
            return found
        tried.append(_repository(cache, bare))
    raise BadInput(
        f"model {name!r} is not on this machine; looked for {', '.join(map(str, dict.fromkeys(map(_tidy, tried))))}. "
        "Nothing is downloaded here: fetch it first, or give its folder"
    )


def hub_cache(environment: Mapping[str, str]) -> Path:
    """The folder of Hugging Face's cache, by its own rules."""
    if given := environment.get("HF_HUB_CACHE"):
        return Path(os.path.expanduser(given))
    if home := environment.get("HF_HOME"):
        return Path(os.path.expanduser(home)) / "hub"
    caches = environment.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return Path(os.path.expanduser(caches)) / "huggingface" / "hub"


def _repository(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}"


def _in_cache(cache: Path, name: str, revision: str) -> Path | None:
    if not _REVISION.fullmatch(revision):
        return None
    repository = _repository(cache, name)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (repository / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
    snapshot = repository / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def _tidy(place: Path) -> Path:
    return Path(os.path.normpath(place))
