"""Is a version that a site merged what the merge job was to make?

A merge has one right result, bit for bit. With ``merge_check: rebuild`` the coordinator repeats it, and a difference is
proof that the site's bytes are wrong. Without, everything is checked that costs no merge: what the manifest says it was
made of, its files' names and sizes, config and tokenizer, and every tensor's shape, dtype and finiteness.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consortium.blobs import Blobs
from consortium.canonical import decode, digest_of_fact, replace
from consortium.errors import BadInput, Corrupt
from consortium.ids import SiteName, short
from consortium.jobs import Merge
from consortium.manifests import Contribution, FileRef, VersionManifest
from consortium.merging.checksums import CHECKSUMS_FILE, Checksums, checked_pieces, read_checksums
from consortium.merging.job import ingredients_of, outer_files
from consortium.store import ref_of
from consortium.tensor_writer import copy_companions, plan_shards
from consortium.tensors import INDEX_FILE, SINGLE_FILE, Checkpoint, DType, TensorFile, Tensors
from consortium.versions import VERSION, lay_out, model_file

_MANIFEST_BYTES_MAX = 16 << 20
_DTYPES: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """What a merged version is compared with."""

    what: str  #: was merged, in words
    base_dir: Callable[[], Path]  #: lays the job's base out
    scratch: Callable[[], Path]  #: a folder that is not there yet
    rebuild: Callable[[], VersionManifest] | None  #: merges again; None: the campaign asks for no rebuild

    @property
    def how(self) -> str:
        """How far an accepted version was checked, in words."""
        if self.rebuild is not None:
            return "the coordinator merged again and got the same bytes"
        return "base, recipe, ingredients, shapes and finiteness are right; merge_check: none merged nothing again"


def inspect_version(
    work: Merge, contribution: Contribution, store: Blobs, check: MergeCheck
) -> VersionManifest:
    """The manifest of a version that may be accepted. Raises BadInput with the sentence for ``why``."""
    named = contribution.artifacts.get(VERSION)
    if named is None:
        raise BadInput(f"artifacts are {sorted(contribution.artifacts)}, without {VERSION!r}, the manifest")
    data = store.read_bytes(named.digest, _MANIFEST_BYTES_MAX)
    manifest = decode(data, VersionManifest, "version manifest")
    if manifest.digest != named.digest:
        raise BadInput(
            "version manifest: is not in its canonical spelling; write it with consortium.canonical"
        )
    _made_of(manifest, work)
    _delivered(manifest, contribution)
    if check.rebuild is not None:
        _same(manifest, check.rebuild(), contribution.site)
    else:
        _believable(manifest, work, store, check)
    return manifest


def _made_of(manifest: VersionManifest, work: Merge) -> None:
    if manifest.base != work.base:
        raise BadInput(f"version's base is {manifest.base}, the job's is {work.base}; merge onto that")
    recipe = digest_of_fact(work.recipe)
    if manifest.recipe != recipe:
        raise BadInput(f"version's recipe is {manifest.recipe}, the job's is {recipe}; merge by that")
    if manifest.initial is not None or manifest.schema != 1:
        raise BadInput("version manifest: says more than a merge has to say; deliver what the merge gave")
    wanted, got = ingredients_of(work), manifest.ingredients
    for item in sorted({*wanted} ^ {*got}, key=lambda item: (item.delta.digest, item.weight)):
        what = "is missing" if item in wanted else "was not asked for"
        raise BadInput(
            f"version's ingredient {short(item.delta.digest)} with weight {item.weight} {what}; "
            "merge exactly the contributions that the job names"
        )
    if got != wanted:
        raise BadInput("version's ingredients are not sorted by digest, or one is there twice")


def _delivered(manifest: VersionManifest, contribution: Contribution) -> None:
    """Every file that the manifest names was delivered as such, and nothing else was."""
    wanted = {model_file(name): ref for name, ref in {**manifest.files, **manifest.outer_state}.items()}
    got = {name: ref for name, ref in contribution.artifacts.items() if name != VERSION}
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise BadInput(
                f"{name}: the version manifest has {_told(wanted.get(name))}, the delivery "
                f"{_told(got.get(name))}; deliver each file of the version, and no other"
            )


def _told(ref: FileRef | None) -> str:
    return f"{ref.size} bytes with {short(ref.digest)}" if ref else "no such file"


def _same(manifest: VersionManifest, again: VersionManifest, site: SiteName) -> None:
    if manifest == again:
        return
    wanted, got = ({**each.files, **each.outer_state} for each in (again, manifest))
    for name in sorted(wanted.keys() | got.keys()):
        if wanted.get(name) != got.get(name):
            raise BadInput(
                f"{name}: {site} delivered {_told(got.get(name))}, the coordinator's own merge gives "
                f"{_told(wanted.get(name))}; a merge has one right result, so the site's is wrong"
            )
    raise BadInput(f"version is {manifest.digest}, the coordinator's own merge gives {again.digest}")


# --- without merging again ---------------------------------------------------------------------------


def _believable(manifest: VersionManifest, work: Merge, store: Blobs, check: MergeCheck) -> None:
    dtype = _DTYPES[work.recipe.dtype]
    base_dir = check.base_dir()
    with Checkpoint(base_dir) as base:
        _files(manifest, work, base, base_dir, dtype)
        folder = check.scratch()
        lay_out(manifest, store.path, folder)
        with Checkpoint(folder, "the version") as model:
            _shapes(model, base)
            _tensors(model, dtype)
        _checksums(folder)
    for name, ref in sorted(manifest.outer_state.items()):
        with TensorFile(store.path(ref.digest), name) as state:
            _tensors(state, "F32")


def _files(manifest: VersionManifest, work: Merge, base: Checkpoint, base_dir: Path, dtype: DType) -> None:
    """The names of all files, and the bytes of those that are copied from the base."""
    shards = set(plan_shards(base.shapes, dtype, work.recipe.shard_bytes))
    with tempfile.TemporaryDirectory() as place:
        copy_companions(base_dir, Path(place), dtype)
        companions = {path.name: ref_of(path) for path in sorted(Path(place).iterdir())}
    wanted = {*shards, *companions, CHECKSUMS_FILE} | (set() if shards == {SINGLE_FILE} else {INDEX_FILE})
    outer = outer_files(work.recipe)
    for what, names, found in (
        ("files", wanted, manifest.files),
        ("outer state", outer, manifest.outer_state),
    ):
        if names != found.keys():
            raise BadInput(
                f"version's {what}: {sorted(found)}, the merge writes {sorted(names)}; deliver those"
            )
    for name, ref in companions.items():
        if manifest.files[name] != ref:
            raise BadInput(f"{name}: is not the base's; a merge copies config and tokenizer")


def _checksums(folder: Path) -> None:
    """The weights are those that the version's own checksums name."""
    told = read_checksums(folder)
    if ref_of(folder / CHECKSUMS_FILE).digest != told.digest or replace(told, tensors={}) != Checksums(
        tensors={}
    ):
        raise BadInput(f"{CHECKSUMS_FILE}: is not as a merge writes it")
    try:
        for _ in checked_pieces(folder, told):
            pass
    except (Corrupt, ValueError) as error:  # another digest, or another number of them
        raise BadInput(f"{CHECKSUMS_FILE}: is not of the weights that were delivered") from error


def _shapes(model: Tensors, base: Tensors) -> None:
    for name in sorted(base.keys() | model.keys()):
        got, want = model.shapes.get(name), base.shapes.get(name)
        if got != want:
            raise BadInput(
                f"{model.label}: tensor {name!r} has shape {got}, the base {want}; a merge changes no shape"
            )


def _tensors(found: Tensors, dtype: DType) -> None:
    for name, info in found.items():
        if info.dtype != dtype:
            raise BadInput(f"{found.label}: tensor {name!r} is {info.dtype}, the merge writes {dtype}")
        if not all(np.isfinite(piece).all() for _, piece in found.pieces(name)):
            raise BadInput(f"{found.label}: tensor {name!r} is not finite; no merge gives that")
