"""Text as sites really hold it, small: each data set's format, and a site made of them."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from consortium.ids import Language
from site_agent.config import Text
from site_agent.data.documents import Document
from site_agent.data.reading import UnitReader
from site_agent.data.segments import Findings, Split, findings_of, map_segment, units_of

SPLIT = Split(heldout_share=0.2, seed=0)


def source(language: str, path: Path, access: Any = "private", **more: Any) -> Text:
    return Text(language=Language(language), path=str(path), access=access, licence="CC0-1.0", **more)


def reading(text: Text) -> tuple[list[Document], Findings]:
    """All documents of a source, and what was found on the way."""
    readers = [UnitReader(unit, None, SPLIT, None) for unit in units_of([text])]
    documents = [document for reader in readers for document in reader.documents()]
    return documents, findings(text, Path(text.path).parent / ".found")


def findings(text: Text, folder: Path) -> Findings:
    parts = []
    for number, unit in enumerate(units_of([text])):
        place, segment = folder / f"{number}", 0
        reader = UnitReader(unit, None, SPLIT, None)
        while (head := reader.make(segment, place)) is not None and not head.is_last:
            parts.append(head.findings)
            segment += 1
        parts += [head.findings] if head else []
        assert map_segment(place).head == head or head is None
    return findings_of(parts)


def hplt_v1(number: int, language: str, text: str) -> dict[str, Any]:
    return {
        "id": number, "document_lang": language, "scores": [0.98], "langs": [language],
        "text": text, "url": f"https://example.org/{number}", "collection": "cc40",
    }  # fmt: skip


def hplt_v2(name: str, lang: list[str], text: str, **more: Any) -> dict[str, Any]:
    return {
        "f": "./w/0001.warc.gz", "o": 7045, "s": 5120, "rs": 21990, "u": f"https://example.org/{name}",
        "c": "text/html", "ts": "2023-02-04T12:00:00Z", "collection": "wide00016", "lang": lang,
        "prob": [0.99] * len(lang), "text": text, "seg_langs": lang[:1], "id": name, "filter": "keep",
        "pii": [[0, 3]], "doc_scores": [8.9, 9.1], "robots": "allowed", **more,
    }  # fmt: skip


def hplt_v3(name: str, lang: list[str], text: str, **more: Any) -> dict[str, Any]:
    return {
        "f": "CC-MAIN.warc.gz", "o": 1, "s": 2, "rs": 3, "u": f"https://example.org/{name}",
        "c": "text/html", "ts": "2024-05-01T00:00:00Z", "de": "utf-8", "crawl_id": "CC-MAIN-2024-18", "lang": lang,
        "prob": [0.9] * len(lang), "text": text, "xml": "<doc/>", "html_lang": ["x"], "cluster_size": 2,
        "seg_langs": lang[:1], "robotstxt": "allowed", "id": name, "pii": [], "filter": "keep",
        "doc_scores": [7.0], "web-register": {"NA": 0.5, "IN": 0.2}, **more,
    }  # fmt: skip


def hplt_v4(name: str, lang: list[str], text: str, **more: Any) -> dict[str, Any]:
    return {
        "f": "x", "u": f"https://example.org/{name}", "ts": "2025-05-01T00:00:00Z", "crawl_id": "CC-MAIN-2025-18",
        "text": text, "md": f"# {text}", "htmllang": ["x"], "allowed": True, "id": name,
        "openlid_v2": {"lang": lang, "prob": [0.8] * len(lang)},
        "openlid_v3": {"lang": lang, "prob": [0.9] * len(lang)},
        "glotlid_v3": {"lang": lang, "prob": [0.7] * len(lang)}, **more,
    }  # fmt: skip


def fineweb(name: str, language: str, script: str, text: str | None) -> dict[str, Any]:
    return {
        "text": text, "id": f"<urn:uuid:{name}>", "dump": "CC-MAIN-2023-50", "url": f"https://example.org/{name}",
        "date": "2023-12-01T00:00:00Z", "file_path": "s3://x.warc.gz", "language": language,
        "language_score": 0.99, "language_script": script, "minhash_cluster_size": 3,
        "top_langs": json.dumps({f"{language}_{script}_score": 0.99}),
    }  # fmt: skip


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(record, ensure_ascii=False).encode() + b"\n" for record in records)


def zst_frames(data: bytes, size: int) -> bytes:
    """Many frames, each of ``size`` bytes of data, not cut at lines; among them a skippable one."""
    frames = [zstandard.compress(data[begin : begin + size]) for begin in range(0, len(data), size)]
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"index"
    return b"".join([*frames[:1], skippable, *frames[1:]])


def write_parquet(path: Path, rows: list[dict[str, Any]], row_group: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=row_group, compression="zstd")


def warc_record(kind: str, block: bytes, **headers: str) -> bytes:
    lines = ["WARC/1.0", f"WARC-Type: {kind}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    lines += ["Content-Type: text/plain", f"Content-Length: {len(block)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


def wet_record(name: str, language: str, text: str) -> bytes:
    return warc_record(
        "conversion",
        text.encode(),
        WARC_Target_URI=f"https://example.org/{name}",
        WARC_Date="2024-05-18T01:02:03Z",
        WARC_Record_ID=f"<urn:uuid:{name}>",
        WARC_Identified_Content_Language=language,
    )


def members(parts: list[bytes]) -> bytes:
    """A gzip member for every part, as Common Crawl writes them."""
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


def wet(documents: list[tuple[str, str, str]]) -> bytes:
    info = warc_record("warcinfo", b"Software-Info: ia-web-commons\r\n", WARC_Filename="x.warc.wet.gz")
    return members([info, *(wet_record(*document) for document in documents)])


def sentence(number: int, length: int = 60) -> str:
    words = ["õhtu", "maja", "βιβλίο", "къща", "talo", "järv", "metsä", "vesi", "tee", "ja"]
    return " ".join(words[(number * 7 + place * place) % 10] for place in range(length)) + f" {number}."


def write_site(folder: Path) -> Path:
    """The config of a site with text in every format, some of it broken, repeated or in another language."""
    text = folder / "text"
    (text / "hplt").mkdir(parents=True)
    first = [hplt_v2(f"a{n}", ["ekk_Latn", "fin_Latn"], sentence(n)) for n in range(150)]
    second = [hplt_v3(f"b{n}", ["ekk_Latn"], sentence(n)) for n in range(140, 260)]  # ten again
    broken = b'{"text": "cut of\n' + jsonl([hplt_v3("r", ["rus_Cyrl"], "Это по-русски.")])
    third = [hplt_v4(f"c{n}", ["ekk_Latn"], sentence(n, 400), allowed=n % 10 != 0) for n in range(300, 340)]
    (text / "hplt" / "5_1.jsonl.zst").write_bytes(zst_frames(jsonl(first) + broken, 9000))
    (text / "hplt" / "5_2.jsonl.gz").write_bytes(zipped(jsonl(second)))
    (text / "hplt" / "6_1.jsonl").write_bytes(jsonl(third))
    rows = [fineweb(f"d{n}", "fin", "Latn", sentence(n, 30)) for n in range(400, 700)]
    write_parquet(text / "fi.parquet", rows, row_group=70)
    crawled = [(f"e{n}", "fin" if n % 3 else "eng,fin", sentence(n, 25)) for n in range(680, 800)]
    (text / "CC-MAIN-0.warc.wet.gz").write_bytes(wet(crawled))
    paragraphs = [sentence(n, 12) for n in range(250, 330)]  # some of them held out or public already
    (text / "own.txt").write_text("\r\n\r\n".join(paragraphs), encoding="utf-8")
    config = folder / "site.yaml"
    config.write_text(
        "site: sofia\ncoordinator: c.example.eu:7443\nenrolment: c.example.eu:7444\nhome: home\n"
        "heldout_share: 0.15\ntext:\n"
        "  - {language: ekk_Latn, path: text/hplt, access: public, licence: LicenseRef-hplt, source: HPLT,\n"
        "     robots: pages that robots.txt allows, retention: 2030-12-31}\n"
        "  - {language: et, path: text/own.txt, access: private, licence: LicenseRef-library,\n"
        "     redistribution: restricted}\n"
        "  - {language: fin, path: text/fi.parquet, access: public, licence: ODC-By-1.0, source: FineWeb2}\n"
        "  - {language: fi, path: text/CC-MAIN-0.warc.wet.gz, access: private,\n"
        "     licence: LicenseRef-common-crawl, other_languages: drop}\n",
        encoding="utf-8",
    )
    return config


def files_below(folder: Path) -> dict[str, bytes]:
    """What was prepared: relative path -> bytes; nothing half done may be left beside it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        file.write(data)
    return buffer.getvalue()
