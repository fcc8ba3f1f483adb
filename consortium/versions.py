"""What a model folder is called by its content, how it is laid out from the store, whether it is whole."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path, PurePosixPath

from consortium.canonical import digest_of_fact
from consortium.errors import BadInput, Corrupt, Unavailable
from consortium.files import disk_errors, make_folder, sync_file
from consortium.folders import fresh_folder
from consortium.ids import Digest
from consortium.manifests import FileRef, Ingredient, Initial, VersionManifest
from consortium.merging.recipe import Recipe
from consortium.store import ref_of

OUTER_STATE = "outer.safetensors"  #: the outer optimizer's momentum: beside the model, no part of it
VERSION = "version"  #: the artifact of a merge job that is the version's manifest


def model_file(name: str) -> str:
    """The artifact of a merge job that is the version's file ``name``, of the model or of the outer state."""
    return f"model/{name}"


def manifest_of(
    directory: Path,
    *,
    base: Digest | None = None,
    recipe: Recipe | None = None,
    ingredients: Iterable[Ingredient] = (),
    outer_state: Mapping[str, FileRef] | None = None,
    initial: Initial | None = None,
) -> VersionManifest:
    """The manifest of the model in ``directory``: its visible files, hashed, and what they were made of."""
    return VersionManifest(
        base=base,
        files={name: ref_of(directory / name) for name in _visible(directory) if name != OUTER_STATE},
        recipe=digest_of_fact(recipe) if recipe else None,
        ingredients=tuple(sorted(ingredients, key=lambda item: (item.delta.digest, item.weight))),
        outer_state=dict(sorted((outer_state or {}).items())),
        initial=initial,
    )


def lay_out(manifest: VersionManifest, blob_path: Callable[[Digest], Path], directory: Path) -> None:
    """Make ``directory`` the model: hard links to the blobs where that works, copies elsewhere.

    The files may be the store's own: read, never write. ``directory`` appears whole or not at all.
    Raises BadInput if it exists, Corrupt for a blob of the wrong size, Unavailable for one that is not there.
    """
    with fresh_folder(directory) as folder:
        for name, ref in sorted(manifest.files.items()):
            target = folder / _inside(name)
            source = blob_path(ref.digest)
            if not source.is_file():
                raise Unavailable(f"{name}: blob {ref.digest} is not at {source}; fetch it first")
            with disk_errors(target):
                make_folder(target.parent)
                _link_or_copy(source, target)
                size = target.stat().st_size
            if size != ref.size:
                raise Corrupt(f"{name}: blob {ref.digest} has {size} bytes, not {ref.size}; fetch it again")


def verify_directory(manifest: VersionManifest, directory: Path) -> None:
    """Read every file and compare. Raises Corrupt naming the first that is missing, changed or unknown."""
    expected = manifest.files | manifest.outer_state
    found = _visible(directory)
    for name in sorted(expected.keys() | found):
        if name in manifest.outer_state and name not in found:
            continue  # only whoever merges needs it
        if name not in found:
            raise Corrupt(f"{directory / name}: is missing; lay the version out again")
        if name not in expected:
            raise Corrupt(f"{directory / name}: is not part of version {manifest.digest}; remove it")
        got, want = ref_of(directory / name), expected[name]
        if got != want:
            raise Corrupt(
                f"{directory / name}: has {got.size} bytes with sha256 {got.digest}, the manifest says "
                f"{want.size} with {want.digest}; lay the version out again"
            )


def _visible(directory: Path) -> list[str]:
    """Relative paths of all files below, sorted, less hidden ones (editors' and download tools' own)."""
    found = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def _inside(name: str) -> PurePosixPath:
    """A file name from a manifest, checked: it must stay below the folder."""
    path = PurePosixPath(name)
    if (
        not path.parts
        or path.is_absolute()
        or any(part.startswith(".") for part in path.parts)
        or "\0" in name
    ):
        raise BadInput(
            f"manifest: {name[:80]!r} is no visible path below the model's folder; refuse this manifest"
        )
    return path


def _link_or_copy(source: Path, target: Path) -> None:
    with contextlib.suppress(OSError):  # another file system, or one without hard links: copy
        os.link(source, target)
        return
    shutil.copyfile(source, target)
    sync_file(target)
