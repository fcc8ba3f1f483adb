"""What each data set's documents say of themselves, and records that are cut, mangled or meant to harm."""

import gzip
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from text_samples import (
    SPLIT,
    fineweb,
    hplt_v1,
    hplt_v2,
    hplt_v3,
    hplt_v4,
    jsonl,
    reading,
    sentence,
    source,
    wet,
    wet_record,
    write_parquet,
    zipped,
    zst_frames,
)

from consortium.errors import Corrupt, Unavailable
from consortium.ids import Language
from site_agent.data.documents import Document, is_said_to_be, shown_tag
from site_agent.data.reading import UnitReader
from site_agent.data.segments import units_of

TEXT = "Tere, maailm."


@pytest.mark.parametrize(
    ("record", "tag", "opted_out"),
    [
        (hplt_v1(7, "et", TEXT), "et", False),
        (hplt_v2("n", ["ekk_Latn", "fin_Latn"], TEXT), "ekk_Latn", False),
        (hplt_v2("n", ["ekk_Latn"], TEXT, robots="disallowed"), "ekk_Latn", True),
        (hplt_v3("n", ["ekk_Latn"], TEXT), "ekk_Latn", False),
        (hplt_v3("n", [], TEXT, robotstxt="disallowed"), "", True),
        (hplt_v3("n", ["ekk_Latn"], TEXT, robotstxt="unknown", xml=None), "ekk_Latn", False),
        (hplt_v4("n", ["ekk_Latn"], TEXT), "ekk_Latn", False),
        (hplt_v4("n", ["ekk_Latn"], TEXT, allowed=False), "ekk_Latn", True),
        ({"openlid-v3": {"lang": ["ekk_Latn"], "prob": [1]}, "text": TEXT, "id": "n"}, "ekk_Latn", False),
        (fineweb("n", "ekk", "Latn", TEXT), "ekk_Latn", False),
        ({"text": TEXT, "id": "n", "lang": {"odd": 1}, "language": 3.5, "robots": ["x"]}, "", False),
    ],
)
@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_what_a_document_says_of_itself(
    tmp_path: Path, record: dict[str, Any], tag: str, opted_out: bool, ending: str
) -> None:
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(
            pa.Table.from_pylist([{key: value for key, value in record.items() if value != []}]), path
        )
    else:
        path.write_bytes(jsonl([record]))
    found, said = reading(source("et", path, opted_out="keep"))
    assert found == [Document(str(record["id"]), TEXT, tag, opted_out)]
    assert said.said == (tag != "")
    assert said.other_languages == {}
    assert said.passed_over == ({"opted out, kept": 1} if opted_out else {})
    left, said = reading(source("et", path))
    assert len(left) == 1 - opted_out
    assert said.passed_over == ({"opted out": 1} if opted_out else {})


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        *(("als_Latn", "sq"), ("ekk_Latn", "et"), ("nob_Latn", "no"), ("nno_Latn", "no"), ("lvs_Latn", "lv")),
        *(("ell_Grek", "el"), ("srp_Cyrl", "sr"), ("srp_Latn", "sr"), ("hbs", "hr"), ("hbs_Latn", "cnr")),
        *(("ron_Latn", "ro"), ("mol", "ro"), ("pt-BR", "pt"), ("sr@latin", "sr"), ("ENG", "en")),
    ],
)
def test_tags_of_data_sets_are_understood(tag: str, language: str) -> None:
    assert is_said_to_be(tag, Language(language))


@pytest.mark.parametrize(
    ("tag", "language"),
    [
        ("rus_Cyrl", "uk"),
        ("ell_Latn", "el"),
        ("hbs", "sl"),
        ("", "et"),
        ("x" * 1000, "et"),
        ("fin_Latn", "et"),
    ],
)
def test_others_are_not_taken_for_it(tag: str, language: str) -> None:
    assert not is_said_to_be(tag, Language(language))


def test_another_language_is_counted_and_left_out_if_wanted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    tags = ["ekk_Latn", "fin_Latn", "fin_Latn", "zz\n'\"<x>", "ekk_Latn"]
    path.write_bytes(jsonl([hplt_v2(str(n), [tag], sentence(n)) for n, tag in enumerate(tags)]))
    kept, found = reading(source("et", path))
    assert len(kept) == found.said == 5
    assert found.other_languages == {"fin_Latn": 2, "zz????x?": 1}
    left, found = reading(source("et", path, other_languages="drop"))
    assert [document.id for document in left] == ["0", "4"]
    assert found.passed_over == {"another language": 3}


def test_tags_without_number_or_end_are_counted_in_bounded_room(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([hplt_v2(str(n), [f"tag{n}" + "x" * n * 1000], sentence(n)) for n in range(80)]))
    counted = reading(source("et", path))[1].other_languages
    assert len(counted) == 51
    assert counted["..."] == 30
    assert max(map(len, counted)) == len(shown_tag("y" * 100)) == 24


def test_wet_of_many_members(tmp_path: Path) -> None:
    path = tmp_path / "CC-MAIN-1.warc.wet.gz"
    path.write_bytes(
        wet([("a", "ekk", "Esimene.\r\nTeine rida.\n"), ("b", "eng,ekk", "Second."), ("c", "", "  ")])
    )
    found, said = reading(source("et", path))
    assert found == [
        Document("<urn:uuid:a>", "Esimene.\r\nTeine rida.\n", "ekk"),
        Document("<urn:uuid:b>", "Second.", "eng"),
    ]
    assert (said.other_languages, said.faults) == ({"eng": 1}, {"empty": 1})
    (tmp_path / "whole.warc.wet").write_bytes(gzip.decompress(path.read_bytes()))  # the same, unpacked
    assert reading(source("et", tmp_path / "whole.warc.wet"))[0] == found


def test_wet_records_that_are_none(tmp_path: Path) -> None:
    good = [wet_record(name, "ekk", f"Tekst {name}.") for name in "abcd"]
    path = tmp_path / "a.wet"
    path.write_bytes(
        good[0]
        + b"stray line\r\nanother\r\n\r\n"
        + good[1]
        + b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: -5\r\n\r\nWARC-less\r\n\r\n"
        + good[2]
        + b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 9\xd9\xa3\r\n\r\n"
        + good[3]
        + b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Length: 999999999999\r\n\r\nonly this"
    )
    found, said = reading(source("et", path))
    assert [document.text for document in found] == [f"Tekst {name}." for name in "abcd"]
    assert said.faults == {"not a WARC record": 1, "bad WARC header": 2, "cut off": 1}
    assert said.first_faults[0] == f"{path}:2: not a WARC record"


def test_a_block_over_the_limit_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agent.data.records.LINE_BYTES_MAX", 1000)
    path = tmp_path / "a.wet"
    path.write_bytes(wet_record("a", "ekk", "x" * 1001) + wet_record("b", "ekk", "y" * 1000))
    found, said = reading(source("et", path))
    assert [document.text for document in found] == ["y" * 1000]
    assert said.faults == {"line too long": 1}


def test_rows_of_several_row_groups_keep_their_numbers(tmp_path: Path) -> None:
    rows = [fineweb(str(n), "ekk", "Latn", sentence(n) if n % 40 else None) for n in range(200)]
    write_parquet(tmp_path / "a.parquet", rows, row_group=30)
    found, said = reading(source("et", tmp_path / "a.parquet"))
    assert [document.text for document in found] == [row["text"] for row in rows if row["text"]]
    places = [f"{tmp_path}/a.parquet:{n + 1}: no 'text'" for n in range(0, 200, 40)]
    assert list(said.first_faults) == places


def test_a_string_column_that_is_not_utf8_costs_its_row_only(tmp_path: Path) -> None:
    texts = pa.StringArray.from_buffers(3, *_buffers([b"Esimene.", b"bad \xff byte", b"Kolmas."]))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    found, said = reading(source("et", tmp_path / "a.parquet"))
    assert [document.text for document in found] == ["Esimene.", "Kolmas."]
    assert said.faults == {"not UTF-8": 1}


def _buffers(parts: list[bytes]) -> tuple[Any, Any]:
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return pa.array(ends, pa.int32()).buffers()[1], pa.py_buffer(b"".join(parts))


def test_dictionary_columns_are_text_too(tmp_path: Path) -> None:
    table = pa.table({"text": pa.array(["üks", "kaks", "üks"]).dictionary_encode(), "id": ["1", "2", "3"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert [document.text for document in reading(source("et", tmp_path / "a.parquet"))[0]] == [
        "üks",
        "kaks",
        "üks",
    ]


def test_large_documents_and_control_characters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("site_agent.data.documents.DOCUMENT_BYTES_MAX", 100)
    path = tmp_path / "a.jsonl"
    texts = ["õ" * 50, "õ" * 51, "x" * 100, "x" * 101, "tab\tand\nline\r", "bell\x07", "del\x7f", "c1\x85"]
    path.write_bytes(jsonl([{"text": text} for text in texts]))
    found, said = reading(source("et", path))
    assert [document.text for document in found] == [texts[n] for n in (0, 2, 4, 5, 6, 7)]
    assert said.faults == {"document too large": 2}
    assert said.control_characters == 2


def refusal(path: Path) -> str:
    """What a refusal to read the file begins with, its path; empty if all of it could be read."""
    try:
        reading(source("et", path))
    except Corrupt as error:
        return str(error).partition(": ")[0]
    return ""


@pytest.mark.parametrize("pack", [zipped, lambda data: zst_frames(data, 700)], ids=["gz", "zst"])
def test_a_file_cut_anywhere_is_found_out(tmp_path: Path, pack: Any) -> None:
    """Frames and members that end in the right place are whole files; any other cut is an error."""
    data = jsonl([{"text": sentence(n)} for n in range(8)])
    whole = pack(data)
    path = tmp_path / f"a.jsonl.{'gz' if pack is zipped else 'zst'}"
    fine = 0
    for cut in range(1, len(whole), 37):
        path.write_bytes(whole[:cut])
        fine += not refusal(path)
    assert fine <= (0 if pack is zipped else 3)
    path.write_bytes(whole)
    assert len(reading(source("et", path))[0]) == 8


@pytest.mark.parametrize("pack", [zipped, zstandard.compress], ids=["gz", "zst"])
def test_a_file_that_grows_like_no_text_is_refused(
    tmp_path: Path, pack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("site_agent.data.streams._FREE_BYTES", 1 << 20)
    monkeypatch.setattr("site_agent.data.streams._GROWTH_MAX", 100)
    path = tmp_path / f"a.jsonl.{'gz' if pack is zipped else 'zst'}"
    path.write_bytes(pack(b'{"text": "x"}\n' + b"\0" * (64 << 20)))
    with pytest.raises(Corrupt, match="no text packs so well"):
        reading(source("et", path))


def test_a_frame_that_wants_too_much_memory_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(packer.compress(b'{"text": "x"}\n') + packer.flush())
    with pytest.raises(Corrupt, match="memory"):
        reading(source("et", tmp_path / "a.jsonl.zst"))


def test_links_to_files_are_followed_and_loops_and_broken_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.jsonl").write_bytes(jsonl([{"text": "Siin."}]))
    folder = tmp_path / "et"
    folder.mkdir()
    (folder / "a.jsonl").symlink_to(tmp_path / "elsewhere.jsonl")
    (folder / "b.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    (folder / "c.jsonl").symlink_to(folder / "c.jsonl")
    (folder / "loop").symlink_to(folder)
    assert [document.text for document in reading(source("et", folder))[0]] == ["Siin."]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.txt", "a.parquet"])
@pytest.mark.parametrize("how", ["replaced", "written over"])
def test_a_file_that_changes_while_it_is_read_is_never_a_mixture(tmp_path: Path, name: str, how: str) -> None:
    path = tmp_path / name

    def fill(place: Path, first: int) -> None:
        texts = [{"text": sentence(n, 200)} for n in range(first, first + 200)]
        if name == "a.parquet":
            write_parquet(place, texts, 20)
        elif name == "a.txt":
            place.write_text("\n\n".join(text["text"] for text in texts))
        else:
            place.write_bytes(jsonl(texts) if name == "a.jsonl" else zst_frames(jsonl(texts), 20_000))

    fill(path, 0)
    os.utime(path, ns=(1, 1))
    (unit,) = units_of([source("et", path)], 20_000)
    reader = UnitReader(unit, None, SPLIT, None, 20_000)
    reader.make(0, tmp_path / "0.segment")
    fill(tmp_path / f"new-{name}", 1000)
    if how == "replaced":
        os.replace(tmp_path / f"new-{name}", path)
    else:
        path.write_bytes((tmp_path / f"new-{name}").read_bytes())
    with pytest.raises((Unavailable, Corrupt), match=name):
        any(reader.make(number, tmp_path / f"{number}.segment") is None for number in range(1, 100))
    with pytest.raises((Unavailable, Corrupt), match="changed while"):  # nor is it begun anew
        UnitReader(unit, None, SPLIT, None, 20_000).make(0, tmp_path / "again")


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=400),
    ending=st.sampled_from(["jsonl", "txt", "wet", "jsonl.gz", "jsonl.zst", "parquet"]),
)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, ending: str
) -> None:
    path = tmp_path_factory.mktemp("any") / f"a.{ending}"
    path.write_bytes(data)
    assert refusal(path) in ("", str(path))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=300))
def test_any_wet_after_a_good_record_leaves_that_record(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.wet"
    path.write_bytes(wet_record("a", "ekk", TEXT) + data)
    assert reading(source("et", path))[0][0].text == TEXT
