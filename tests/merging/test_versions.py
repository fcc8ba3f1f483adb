"""Versions: named by content alone, laid out from blobs, and every changed byte is found."""

import os
from pathlib import Path

import pytest

from consortium.canonical import replace
from consortium.errors import BadInput, Corrupt, Unavailable
from consortium.folders import fresh_folder
from consortium.ids import digest_of
from consortium.manifests import FileRef, Ingredient, Initial
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep, Recipe
from consortium.store import BlobStore
from consortium.versions import lay_out, manifest_of, verify_directory


@pytest.fixture
def store(tmp_path: Path, base_dir: Path) -> BlobStore:
    store = BlobStore(tmp_path / "store")
    for path in base_dir.iterdir():
        store.put_file(path)
    return store


def ingredient(name: bytes, weight: int) -> Ingredient:
    return Ingredient(delta=FileRef(digest=digest_of(name), size=len(name)), weight=weight)


def test_the_name_depends_on_content_and_nothing_else(tmp_path: Path, base_dir: Path) -> None:
    name = manifest_of(base_dir).digest
    os.utime(base_dir / "config.json", (0, 0))
    (base_dir / ".cache").mkdir()
    (base_dir / ".cache/lock").write_text("a tool's own")
    (base_dir / "outer.safetensors").write_text("beside the model, no part of it")
    assert manifest_of(base_dir.rename(tmp_path / "elsewhere")).digest == name

    base_dir = tmp_path / "elsewhere"
    a, b = ingredient(b"a", 1), ingredient(b"b", 2)
    named = [
        manifest_of(base_dir, ingredients=[a, b]).digest,
        manifest_of(base_dir, ingredients=[a]).digest,
        manifest_of(base_dir, base=digest_of(b"base")).digest,
        manifest_of(base_dir, recipe=Recipe(outer=OuterStep())).digest,
        manifest_of(base_dir, recipe=PLAIN_AVERAGE).digest,
        manifest_of(base_dir, initial=Initial(config=digest_of(b"config"), seed=1)).digest,
        manifest_of(base_dir, outer_state={"outer.safetensors": a.delta}).digest,
        name,
    ]
    assert len(set(named)) == len(named)
    assert manifest_of(base_dir, ingredients=[b, a]).digest == named[0]
    (base_dir / "config.json").write_text("{}")
    assert manifest_of(base_dir).digest != name


def test_laid_out_from_the_store_it_is_whole_and_costs_no_space(
    tmp_path: Path, base_dir: Path, store: BlobStore
) -> None:
    manifest = manifest_of(base_dir)
    lay_out(manifest, store.path, tmp_path / "deep/model")
    verify_directory(manifest, tmp_path / "deep/model")
    config = manifest.files["config.json"]
    assert (tmp_path / "deep/model/config.json").samefile(store.path(config.digest))


def test_where_links_do_not_work_it_is_copied(
    tmp_path: Path, base_dir: Path, store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", no_links)
    lay_out(manifest_of(base_dir), store.path, tmp_path / "model")
    verify_directory(manifest_of(base_dir), tmp_path / "model")


def test_what_cannot_be_laid_out_is_not_half_laid_out(
    tmp_path: Path, base_dir: Path, store: BlobStore
) -> None:
    manifest = manifest_of(base_dir)
    config = manifest.files["config.json"]

    def with_config(ref: FileRef, name: str = "config.json") -> None:
        lay_out(replace(manifest, files=manifest.files | {name: ref}), store.path, tmp_path / "model")

    with pytest.raises(Corrupt, match=r"config\.json: blob .* bytes, not 1;"):
        with_config(FileRef(digest=config.digest, size=1))
    with pytest.raises(Unavailable, match="is not in the store"):
        with_config(FileRef(digest=digest_of(b"?"), size=1))
    for name in ("../x", "/x", "a/../../x", ".x", "", "a/.git/config", "a\0b"):
        with pytest.raises(BadInput, match="no visible path below"):
            with_config(config, name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "store"]


def test_every_kind_of_damage_is_named(tmp_path: Path, base_dir: Path, store: BlobStore) -> None:
    manifest = manifest_of(base_dir)
    (base_dir / "outer.safetensors").write_text("momentum")
    with pytest.raises(Corrupt, match=r"outer\.safetensors: is not part of version"):
        verify_directory(manifest, base_dir)
    (base_dir / "outer.safetensors").unlink()

    shard = base_dir / "model-00002-of-00003.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(Corrupt, match=r"model-00002-of-00003\.safetensors: has \d+ bytes with sha256"):
        verify_directory(manifest, base_dir)
    shard.unlink()
    with pytest.raises(Corrupt, match=r"model-00002-of-00003\.safetensors: is missing"):
        verify_directory(manifest, base_dir)


def test_a_folder_that_somebody_is_still_filling_is_left_alone(tmp_path: Path) -> None:
    with fresh_folder(tmp_path / "x") as first:
        with fresh_folder(tmp_path / "x") as second:
            (second / "file").write_text("second")
        assert first.exists()
        (tmp_path / "x").rename(tmp_path / "y")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "y"]


def test_an_empty_or_half_filled_folder_vanishes_with_its_error(tmp_path: Path) -> None:
    def fill_half() -> None:
        with fresh_folder(tmp_path / "x") as folder:
            (folder / "file").write_text("half")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        fill_half()
    assert list(tmp_path.iterdir()) == []
