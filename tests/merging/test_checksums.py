"""Checksums of pieces: they find what changed, whatever the sharding, and a check can go on where it stopped."""

from collections.abc import Callable
from pathlib import Path

import pytest

from console.checking_models import check_model
from consortium.errors import BadInput, Corrupt
from consortium.merging.checksums import checked_pieces, checksums_of, read_checksums
from consortium.merging.merge import MergeInput, merge
from consortium.merging.recipe import PLAIN_AVERAGE, Recipe


@pytest.fixture
def model(
    tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr("consortium.merging.survey.SPAN", 6)  # several pieces of tiny tensors
    merge(base_dir, [delta(1)], None, PLAIN_AVERAGE, tmp_path / "model")
    return tmp_path / "model"


def nowhere(name: str, size: int) -> Callable[[int], None]:
    return lambda moved: None


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_what_a_merge_says_is_what_lies_there(model: Path) -> None:
    told = read_checksums(model)
    assert told == checksums_of(model, threads=1) == checksums_of(model, threads=3)
    pieces = [(name, start) for name, start in checked_pieces(model, told)]
    assert len(pieces) == told.num_pieces == 4 + 1 + 4 + 1  # lines of 3 and 5 elements stay whole
    assert pieces[:2] == [("embed", 0), ("embed", 6)]


def test_the_digest_does_not_know_shards(
    tmp_path: Path, base_dir: Path, delta: Callable[..., MergeInput]
) -> None:
    results = [
        merge(base_dir, [delta(1)], None, Recipe(shard_bytes=size), tmp_path / f"of-{size}")
        for size in (60, 1 << 20)
    ]
    assert results[0].checksums == results[1].checksums
    assert results[0].files.keys() != results[1].files.keys()


@pytest.mark.parametrize("offset", [-1, -30, -100])
def test_one_bit_is_found_with_its_place(model: Path, offset: int) -> None:
    flip(model / "model.safetensors", offset)
    with pytest.raises(Corrupt, match=r"tensor '[a-z.]+', elements [0-9]+ to [0-9]+: blake3 is not"):
        list(checked_pieces(model, read_checksums(model)))


def test_a_check_goes_on_where_it_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "checked"

    class CutOff(Exception):
        pass

    def cut_off(name: str, size: int) -> Callable[[int], None]:
        def moved(count: int) -> None:
            if count > size // 2:
                raise CutOff

        return moved

    with pytest.raises(CutOff):
        check_model(model, log, 1, cut_off)
    half = log.read_text().splitlines()
    with log.open("a") as file:
        file.write("3 half a li")  # the power went
    read: list[tuple[str, int]] = []
    from consortium.merging import checksums

    whole = checksums.piece_digest
    monkeypatch.setattr(
        checksums,
        "piece_digest",
        lambda one, name, span: read.append((name, span.start)) or whole(one, name, span),
    )

    found = check_model(model, log, 2, nowhere)

    assert (found.tensors, found.pieces) == (4, 10)
    assert len(read) == 10 - (len(half) - 1)
    assert check_model(model, log, 2, nowhere) == found and len(read) == 10 - (len(half) - 1)


def test_what_is_refused_and_why(model: Path, tmp_path: Path, base_dir: Path) -> None:
    with pytest.raises(BadInput, match="only models that we merged have checksums"):
        check_model(base_dir, None, 1, nowhere)
    (tmp_path / "log").write_text("0000\n")
    with pytest.raises(BadInput, match="is of weights 0000"):
        check_model(model, tmp_path / "log", 1, nowhere)
    (model / "checksums.json").write_text((model / "checksums.json").read_text().replace("embed", "embod"))
    with pytest.raises(Corrupt, match=r"tensor 'embed' is .*, the checksums say None"):
        check_model(model, None, 1, nowhere)
