"""Tokens on disk."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.errors import Corrupt
from site_agent.packed import Packed, PackedWriter, dtype_for, num_sequences, sequence

DOCUMENTS = [[1, 0], [2, 3, 0], [5, 6, 7, 0]]


def _write(stem: Path, vocabulary_size: int = 300) -> Packed:
    with PackedWriter(stem, dtype_for(vocabulary_size)) as writer:
        writer.add(DOCUMENTS[:2])
        writer.add([])
        writer.add(DOCUMENTS[2:])
    return Packed(stem)


@pytest.mark.parametrize(("vocabulary_size", "code"), [(300, 8), (65536, 8), (65537, 4)])
def test_round_trip(tmp_path: Path, vocabulary_size: int, code: int) -> None:
    packed = _write(tmp_path / "x", vocabulary_size)
    assert [tokens.tolist() for tokens in packed.documents()] == DOCUMENTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.bin", "x.idx"]
    # Megatron's layout, read by hand
    raw = (tmp_path / "x.idx").read_bytes()
    width = {8: 2, 4: 4}[code]
    assert struct.unpack("<9sQBQQ", raw[:34]) == (b"MMIDIDX\0\0", 1, code, 3, 4)
    assert np.frombuffer(raw, "<i4", 3, 34).tolist() == [2, 3, 4]
    assert np.frombuffer(raw, "<i8", 3, 46).tolist() == [0, 2 * width, 5 * width]
    assert np.frombuffer(raw, "<i8", 4, 70).tolist() == [0, 1, 2, 3]
    assert len(raw) == 102


def test_nothing_is_a_pair_too(tmp_path: Path) -> None:
    with PackedWriter(tmp_path / "x", dtype_for(300)):
        pass
    assert len(Packed(tmp_path / "x")) == Packed(tmp_path / "x").tokens.size == 0
    assert Packed(tmp_path / "x").documents() == []


def test_a_token_outside_the_vocabulary_is_not_wrapped(tmp_path: Path) -> None:
    with pytest.raises(OverflowError), PackedWriter(tmp_path / "x", dtype_for(300)) as writer:
        writer.add([[70000]])
    assert not (tmp_path / "x.idx").exists()  # whoever fills the folder throws it away


@pytest.mark.parametrize("suffix", [".idx", ".bin"])
def test_a_cut_file_is_found_out(tmp_path: Path, suffix: str) -> None:
    _write(tmp_path / "x")
    path = tmp_path / f"x{suffix}"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(Corrupt, match=r"x\.idx"):
        Packed(tmp_path / "x")


@given(st.integers(1, 60), st.integers(1, 25))
def test_an_epoch_predicts_every_token_once(num_tokens: int, sequence_tokens: int) -> None:
    tokens = np.arange(num_tokens, dtype=np.uint16)
    rows = [
        sequence(tokens, index, sequence_tokens)
        for index in range(num_sequences(num_tokens, sequence_tokens))
    ]
    assert all(len(row) == sequence_tokens + 1 for row in rows)
    assert all(
        ((np.diff(row.astype(int)) - 1) % num_tokens == 0).all() for row in rows
    )  # they follow each other
    targets = np.concatenate([row[1:] for row in rows])[:num_tokens]
    assert sorted(targets.tolist()) == tokens.tolist()
