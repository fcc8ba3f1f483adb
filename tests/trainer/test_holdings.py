"""Surveys of a site's text, and what of it is trained on."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from trainer_samples import (
    ALPHABETS,
    make_job,
    make_site,
    sentences,
    source,
    train_work,
    training_split,
    write_jsonl,
)

from consortium.errors import Unavailable
from consortium.ids import Digest, SiteName
from consortium.manifests import DataManifest
from site_agent import holdings
from site_agent.config import Text
from site_agent.data import reading
from site_agent.data.contents import plan_of
from site_agent.data.merging import digest_of_documents
from site_agent.data.segments import Split, Words
from site_agent.data.words import words_alone
from site_agent.prepared import prepare, prepare_all
from site_agent.text import is_heldout
from site_agent.trainer import words
from site_agent.trainer.folder import JobFolder
from site_agent.trainer.ranks import Ranks

SITE = SiteName("sofia")
WORDS = Words(digest=Digest("1" * 64), eos=256, vocabulary_size=257)


def _bytes(texts: list[str]) -> list[list[int]]:
    return [list(text.encode()) for text in texts]


def _describe(sources: tuple[Text, ...], cache: Path, share: float = 0.15) -> DataManifest:
    return holdings.describe(SITE, sources, share, 0, cache)


def test_counts_and_digests_do_not_depend_on_how_the_text_lies(tmp_path: Path) -> None:
    texts = sentences("et", 50)
    write_jsonl(tmp_path / "a" / "all.jsonl", texts)
    for part, letter in (
        (texts[30:] + texts[:2], "x"),
        (texts[:30], "y"),
    ):  # other order, other files, two twice
        write_jsonl(tmp_path / "b" / f"{letter}.jsonl", part)
    one, other = (
        _describe((source("et", tmp_path / name),), tmp_path / "cache").holdings[0] for name in "ab"
    )
    assert (one.documents, one.bytes) == (50, sum(len(text.encode()) for text in texts))
    assert one.digest == other.digest
    assert (one.language, one.access, one.licence) == ("et", "private", "CC0-1.0")


def test_a_survey_is_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "et.jsonl"
    write_jsonl(path, sentences("et", 20))
    first = _describe((source("et", path),), tmp_path / "cache")
    monkeypatch.setattr(reading, "document_of", None)  # reading again would fail
    assert _describe((source("et", path),), tmp_path / "cache") == first
    monkeypatch.undo()
    write_jsonl(path, sentences("et", 21))
    os.utime(path, ns=(1, 1))
    assert _describe((source("et", path),), tmp_path / "cache").holdings[0].documents == 21


def test_translations_are_held_out_together(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    split = {}
    for language in ALPHABETS:
        sources = [text for text in site.text if text.language == language]
        found = training_split(sources, site.heldout_share, 0, tmp_path / "cache")
        texts = {"public": sentences(language, 120, seed=1), "private": sentences(language, 200)}
        if language == "el":
            del texts["private"]
        names = {
            hashlib.sha256(text.encode()).digest(): f"{access[0] if access == 'public' else 'o'}{n}"
            for access, all_texts in texts.items()
            for n, text in enumerate(all_texts)
        }
        split[language] = {names[digest] for digest in found["heldout"]}
        assert all(is_heldout(name, 0, site.heldout_share) for name in split[language])
    public = [{name for name in held if name.startswith("p")} for held in split.values()]
    assert public[0] == public[1] == public[2] != set()


def test_public_text_that_says_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    texts = sentences("et", 100)
    write_jsonl(tmp_path / "own.jsonl", texts, "own")
    write_jsonl(tmp_path / "public.jsonl", texts, "public")  # the same words under other ids
    sources = [source("et", tmp_path / "own.jsonl"), source("et", tmp_path / "public.jsonl", "public")]
    parts = training_split(sources, 0.15, 0, tmp_path / "cache")
    assert len(parts["heldout"]) > 20  # held out by either id
    assert not parts["heldout"].keys() & parts["private"].keys()
    assert parts["public"] == {}  # the rest is private training text already
    assert sum(map(len, parts.values())) == 100


def test_prepared_text_is_made_once_and_is_the_documents(tmp_path: Path) -> None:
    site = make_site(tmp_path)
    sources = [text for text in site.text if text.language == "bg"]
    cache = tmp_path / "cache"
    made = prepare(sources, WORDS, lambda: _bytes, 0.15, 0, cache)
    again = prepare(sources, WORDS, lambda: pytest.fail("tokenised twice"), 0.15, 0, cache)
    assert again == made
    documents = {
        part: [bytes(tokens[:-1].astype("u1")).decode() for tokens in made.tokens(part).documents()]
        for part in ("private", "public", "heldout")
    }
    everything = sentences("bg", 200) + sentences("bg", 120, seed=1)
    assert sorted(text for texts in documents.values() for text in texts) == sorted(everything)
    assert [len(text.encode()) for text in documents["heldout"]] == made.heldout_bytes.tolist()
    for part, texts in documents.items():
        digests = [hashlib.sha256(text.encode()).digest() for text in texts]
        described = getattr(made.contents, part)
        assert digests == sorted(digests)
        assert described.digest == digest_of_documents(digests)
        assert described.tokens == made.tokens(part).tokens.size == described.bytes + described.documents
    other_split = prepare(sources, WORDS, lambda: _bytes, 0.15, 1, cache)
    assert other_split.folder != made.folder


def test_two_jobs_at_once_prepare_the_same(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "et.jsonl", sentences("et", 30))
    sources, cache = [source("et", tmp_path / "et.jsonl")], tmp_path / "cache"
    other = []

    def slow() -> Callable[[list[str]], list[list[int]]]:
        other.append(prepare(sources, WORDS, lambda: _bytes, 0.15, 0, cache))  # done while this one begins
        return _bytes

    assert prepare(sources, WORDS, slow, 0.15, 0, cache) == other[0]
    assert [path.name for path in (cache / "tokens").iterdir()] == [other[0].folder.name]


def test_text_that_changes_while_it_is_read_is_not_used(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "et.jsonl", sentences("et", 30))

    def meddling(texts: list[str]) -> list[list[int]]:
        write_jsonl(tmp_path / "et.jsonl", sentences("et", 31))
        return _bytes(texts)

    with pytest.raises(Unavailable, match="changed while"):
        prepare([source("et", tmp_path / "et.jsonl")], WORDS, lambda: meddling, 0.15, 0, tmp_path / "cache")


def test_a_job_finds_what_was_prepared_before_it(
    tmp_path: Path, base: Path, tokenizer_json: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = make_site(tmp_path / "site")
    split = Split(heldout_share=site.heldout_share, seed=0)
    known = words_alone(tokenizer_json, None)
    groups = holdings.by_language(site.text)
    plans = [plan_of(group, known, split, Path(site.cache)) for group in groups.values()]
    made = prepare_all(plans, 2, tokenizer=tokenizer_json)
    folder = JobFolder(make_job(tmp_path / "job", site, train_work(), base))
    monkeypatch.setattr(words, "encoder", lambda *_: pytest.fail("tokenised again"))
    found = words.prepared_languages(folder, alone, groups, 0, folder.base)
    assert list(found.values()) == list(made)
