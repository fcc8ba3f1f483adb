"""The demo's text: real, clean, the same bytes every time, and public or private in all languages at once."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import pytest

from console import corpora
from console.corpora import DEMO_LANGUAGES, CorporaReport, write_corpora
from consortium.errors import BadInput, Unavailable
from consortium.ids import Language, digest_of

pytest.importorskip("django")
pytest.importorskip("gramps")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorporaReport]:
    directory = tmp_path_factory.mktemp("corpora")
    return directory, write_corpora(directory)


def read(directory: Path, side: str, language: str) -> list[dict[str, Any]]:
    lines = (directory / side / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_demo_language_has_text_and_more_private_than_public(
    written: tuple[Path, CorporaReport],
) -> None:
    _, report = written
    assert tuple(row.language for row in report.languages) == tuple(sorted(DEMO_LANGUAGES))
    for row in report.languages:
        assert row.public_bytes > 30_000, row
        assert row.private_bytes > 80_000, row
        assert row.private_bytes > 1.8 * row.public_bytes, row


def test_the_report_counts_what_was_written_and_names_the_licences(
    written: tuple[Path, CorporaReport],
) -> None:
    directory, report = written
    for row in report.languages:
        texts = [line["text"] for line in read(directory, "private", row.language)]
        assert (len(texts), sum(len(text.encode()) for text in texts)) == (
            row.private_documents,
            row.private_bytes,
        )
    notice = (directory / "LICENCES.txt").read_text(encoding="utf-8")
    assert {source.licence for source in report.sources} == {"BSD-3-Clause", "GPL-2.0-or-later"}
    assert all(f"{source.package} {source.version}  {source.licence}" in notice for source in report.sources)


def test_a_document_is_public_or_private_in_all_languages(written: tuple[Path, CorporaReport]) -> None:
    directory, _ = written
    sides = {
        side: {line["id"] for language in DEMO_LANGUAGES for line in read(directory, side, language)}
        for side in ("public", "private")
    }
    assert not sides["public"] & sides["private"]
    irish, dutch = ({line["id"] for line in read(directory, "private", code)} for code in ("ga", "nl"))
    assert len(irish & dutch) > 0.8 * len(dutch), "ids are the same in every language"


def test_documents_are_sorted_unique_and_clean(written: tuple[Path, CorporaReport]) -> None:
    directory, _ = written
    for language in DEMO_LANGUAGES:
        lines = [line for side in ("public", "private") for line in read(directory, side, language)]
        assert len({line["id"] for line in lines}) == len(lines)
        texts = [text for line in lines for text in line["text"].split("\n")]
        assert len(set(texts)) == len(texts)
        for text in texts:
            assert len(text) >= 30, text
            assert len(text.split()) >= 5, text
            assert not set("<>{}\\@_\x04") & set(text), text
            assert "%(" not in text
            assert "%s" not in text
    public = [line["id"] for line in read(directory, "public", "fi")]
    assert public == sorted(public)


def test_the_public_text_holds_all_of_django_and_some_gramps(written: tuple[Path, CorporaReport]) -> None:
    directory, _ = written
    assert {line["source"] for line in read(directory, "private", "ga")} == {"gramps"}
    assert {line["source"] for line in read(directory, "public", "ga")} >= {"django", "gramps"}


def test_scripts_are_what_the_languages_are_written_in(written: tuple[Path, CorporaReport]) -> None:
    directory, _ = written

    def share(language: str, first: str, last: str) -> float:
        letters = [c for line in read(directory, "private", language) for c in line["text"] if c.isalpha()]
        return sum(first <= letter <= last for letter in letters) / len(letters)

    assert share("el", "\u0370", "\u1fff") > 0.9
    assert share("bg", "\u0400", "\u04ff") > 0.9
    assert share("fi", "A", "\u024f") > 0.99


def test_the_same_call_writes_the_same_bytes(tmp_path: Path) -> None:
    languages = [Language("fi"), Language("no")]
    for name in ("one", "two"):
        write_corpora(tmp_path / name, languages if name == "one" else languages[::-1])
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 5
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert digest_of(one) == digest_of(two), file


def test_messages_that_differ_in_a_word_share_a_document() -> None:
    families = corpora._families(
        {
            "Matches families whose notes contain text matching a substring",
            "Matches people whose notes contain text matching a substring",
            "The maximum number of places to show",
        }
    )
    assert families["Matches people whose notes contain text matching a substring"].startswith(
        "Matches families"
    )
    assert families["The maximum number of places to show"] == "The maximum number of places to show"


def test_a_missing_package_is_named_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(package: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(
        Unavailable, match=r"'django', which is not installed.*pip install 'sprachbund\[demo\]'"
    ):
        write_corpora(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_language_without_text_is_named_with_those_that_have_some(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"language 'mt': django [\d.]+ has no text in it; it has .*fi.*nl"):
        write_corpora(tmp_path, [Language("mt")])
    assert not list(tmp_path.iterdir())
