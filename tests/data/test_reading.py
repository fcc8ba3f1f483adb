"""Reading a site's text, and the held-out split."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from text_samples import reading, source

from consortium.errors import BadInput, Corrupt
from site_agent.data.documents import Document
from site_agent.data.segments import Findings
from site_agent.text import files_of, is_heldout

HPLT_V2 = {
    "f": "warc", "o": 1, "s": 2, "rs": 3, "u": "https://example.org", "c": "text/html", "ts": "2024-01-01",
    "collection": "cc", "lang": ["ekk_Latn"], "prob": [0.9], "text": "Tere, maailm.\nTeine rida.",
    "seg_langs": ["ekk_Latn"], "id": "a1", "filter": "keep", "pii": [[0, 4]], "doc_scores": [7.5], "robots": "allowed",
}  # fmt: skip
HPLT_V3 = {
    "de": "utf-8",
    "crawl_id": "c",
    "text": "Kolmas.",
    "web-register": {"NA": 0.5},
    "id": "a2",
    "xml": None,
}
HPLT_V4 = {"md": "# Neljas", "openlid-v2": {"lang": [], "prob": []}, "text": "Neljas.", "allowed": True}


def _all(path: Path, **more: str) -> tuple[list[Document], Findings]:
    return reading(source("et", path, **more))


def test_hplt_lines_of_every_version_and_what_is_not_a_document(tmp_path: Path) -> None:
    lines = [
        json.dumps(HPLT_V2).encode(),
        json.dumps(HPLT_V3).encode(),
        b"",
        json.dumps(HPLT_V4, ensure_ascii=False).encode(),
        b'{"text": "cut of',
        b'{"id": "no text"}',
        b'{"text": null}',
        b'{"text": "  "}',
        b'["text"]',
        b'{"text": "bad \xff byte"}',
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"id": 7, "text": "number as id"}',
    ]
    path = tmp_path / "et.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, faults = _all(path)
    assert found == [
        Document("a1", "Tere, maailm.\nTeine rida.", "ekk_Latn"),
        Document("a2", "Kolmas."),
        Document(None, "Neljas."),
        Document("7", "number as id"),
    ]
    kinds = {"not JSON": 2, "no 'text'": 2, "empty": 1, "not an object": 1, "not UTF-8": 1}
    assert faults.faults == kinds
    assert faults.first_faults == (
        f"{path}:5: not JSON",
        f"{path}:6: no 'text'",
        f"{path}:7: no 'text'",
        f"{path}:8: empty",
        f"{path}:9: not an object",
    )


def test_zstd_of_many_frames_and_gzip_are_seen_through(tmp_path: Path) -> None:
    frames = [zstandard.compress(b'{"text": "' + word + b'"}\n') for word in (b"yks", b"kaks")]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"kolm\n\nneli\n"))
    (tmp_path / ".hidden.txt").write_text("no")
    (tmp_path / "notes.md").write_text("no")
    assert [document.text for document in _all(tmp_path)[0]] == ["yks", "kaks", "kolm", "neli"]


@pytest.mark.parametrize("name", ["cut.jsonl.zst", "cut.txt.gz", "cut.parquet"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    whole = {
        "cut.jsonl.zst": zstandard.compress(b'{"text": "abc"}\n' * 1000),
        "cut.txt.gz": gzip.compress(b"abc\n" * 1000),
        "cut.parquet": b"PAR1 and nothing else",
    }[name]
    (tmp_path / name).write_bytes(b"\0" * 8 + whole[8:])
    with pytest.raises(Corrupt, match=name):
        _all(tmp_path)


def test_parquet_rows(tmp_path: Path) -> None:
    rows = [{"text": "esimene", "id": "x", "url": "u"}, {"text": None, "id": "y", "url": "u"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found, faults = _all(tmp_path)
    assert found == [Document("x", "esimene")]
    assert faults.faults == {"no 'text'": 1}
    with pytest.raises(BadInput, match="has no column 'content' but text, id, url"):
        _all(tmp_path, text_field="content")


def test_fields_may_have_other_names(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "1", "msgid": "m", "content": "tekst"}\n')
    assert _all(tmp_path, text_field="content", id_field="msgid")[0] == [Document("m", "tekst")]


def test_plain_text_is_paragraphs_or_else_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\n \r\nthree  spaced\n\n\nb\xffd\n")
    (tmp_path / "b.txt").write_text("four\nfive")
    found, faults = _all(tmp_path)
    assert [document.text for document in found] == ["one\ntwo", "three  spaced", "four", "five"]
    assert faults.faults == {"not UTF-8": 1}


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agent.data.records.LINE_BYTES_MAX", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 1000}) + "\n" + json.dumps({"text": "short"}))
    found, faults = _all(path)
    assert [document.text for document in found] == ["short"]
    assert faults.faults == {"line too long": 1}


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder"):
        files_of(source("et", tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"holds no \.txt, \.jsonl, \.parquet, \.wet file"):
        files_of(source("et", tmp_path))
    (tmp_path / "text.csv").write_text("a,b")
    with pytest.raises(BadInput, match="cannot tell its format"):
        files_of(source("et", tmp_path / "text.csv"))
    assert files_of(source("et", tmp_path / "text.csv", format="txt")) == [(tmp_path / "text.csv", "txt")]


@given(st.text(), st.integers(0, 9), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_the_same_and_more(key: str, seed: int, one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert is_heldout(key, seed, large) or not is_heldout(key, seed, small)
    assert not is_heldout(key, seed, 0.0)
    assert is_heldout(key, seed, 1.0)


def test_the_split_takes_about_its_share_and_depends_on_the_seed() -> None:
    keys = [f"message {number}" for number in range(4000)]
    drawn = [[is_heldout(key, seed, 0.2) for key in keys] for seed in (0, 1)]
    assert all(700 < sum(held) < 900 for held in drawn)
    assert 100 < sum(a and b for a, b in zip(*drawn, strict=True)) < 220  # independent: 0.04 of 4000
