"""Evaluations, in this process."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_samples import BASE, contribution, evaluate_work, languages, make_job, sha256, source, train_work

from consortium.deltas import apply_delta
from consortium.ids import Digest
from consortium.jobs import Evaluate, Subject
from consortium.manifests import LanguageScore, Scores
from site_agent.data.segments import Words
from site_agent.prepared import prepare
from site_agent.trainer import evaluation
from site_agent.trainer.evaluation import evaluate, nats_of, windows_of
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Site, Stopped
from site_agent.trainer.model import Model, load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train
from site_agent.trainer.words import encoder, words_of

SPECIALIST = Digest("5" * 64)
VERSION = Subject(name="t/v0", version=BASE)
TRAINED = Subject(name="t-r1-train-sofia", version=BASE, delta=SPECIALIST)


@pytest.fixture(scope="module")
def delta(tmp_path_factory: pytest.TempPathFactory, site: Site, base: Path, alone: Ranks) -> Path:
    folder = make_job(tmp_path_factory.mktemp("delta") / "job", site, train_work(steps=40), base)
    work = JobFolder(folder).job.work
    train(JobFolder(folder), work, alone, lambda: False)  # type: ignore[arg-type]
    return folder / "result" / "delta.safetensors"


def _job(folder: Path, site: Site, work: Evaluate, base: Path, delta: Path) -> JobFolder:
    make_job(folder, site, work, base)
    (folder / "inputs").mkdir()
    shutil.copy(delta, folder / "inputs" / SPECIALIST)
    return JobFolder(folder)


def _scores(folder: Path) -> Scores:
    return msgspec.json.decode((folder / "result" / "scores.json").read_bytes(), type=Scores)


def _naive(model_folder: Path, texts: list[list[int]], eos: int) -> list[float]:
    """Document by document, with transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    nats = []
    for ids in texts:
        with torch.no_grad():
            logits = model(torch.tensor([[eos, *ids[:-1]]])).logits[0].double()
        nats.append(-logits.log_softmax(-1)[range(len(ids)), ids].sum().item())
    return nats


def test_scores_are_those_of_a_naive_loop(
    tmp_path: Path, site: Site, base: Path, delta: Path, alone: Ranks
) -> None:
    work = evaluate_work(TRAINED, VERSION, sequence_tokens=64)
    job = _job(tmp_path / "job", site, work, base, delta)
    evaluate(job, work, alone, lambda: False)
    found = _scores(job.path)
    assert set(found.subjects) == {VERSION.name, TRAINED.name}
    apply_delta(base, delta, tmp_path / "specialist")
    words = words_of(base / "tokenizer.json", {"eos_token_id": 0, "vocab_size": 320})
    for language in ("bg", "el", "et"):
        sources = [text for text in site.text if text.language == language]
        part = prepare(
            sources, words, lambda: encoder(base / "tokenizer.json", words), 0.15, 0, Path(site.cache)
        )
        texts = [tokens[:-1].tolist() for tokens in part.tokens("heldout").documents()]
        for subject, folder in ((VERSION, base), (TRAINED, tmp_path / "specialist")):
            score = found.subjects[subject.name][languages(language)[0]]
            short = [index for index, ids in enumerate(texts) if len(ids) <= 64]
            assert len(short) > 5
            naive = _naive(folder, [texts[index] for index in short], 0)
            np.testing.assert_allclose(np.array(score.nats)[short], naive, rtol=1e-5)
            assert score.heldout == part.contents.heldout.digest
            assert score.bytes == tuple(part.heldout_bytes.tolist())
    better = [sum(found.subjects[name][languages("et")[0]].nats) for name in (TRAINED.name, VERSION.name)]
    assert better[0] < better[1]
    assert contribution(job.path).artifacts["scores"].digest == sha256(job.path / "result" / "scores.json")


@given(st.integers(1, 400), st.integers(1, 64))
def test_windows_score_every_token_once_with_enough_before_it(length: int, size: int) -> None:
    windows = windows_of(3, length, size)
    fresh = [target for window in windows for target in range(window.fresh, window.end)]
    assert fresh == list(range(length))
    for window in windows:
        assert 0 < window.end - window.begin <= size
        assert window.begin == 0 or window.fresh - window.begin >= size - max(1, size // 2)


def test_a_long_document_is_scored_in_windows(base: Path, alone: Ranks) -> None:
    """Against each token predicted on its own, from the context its window gives it."""
    document = np.random.default_rng(0).integers(2, 320, 41)
    model = load_model(base, alone.device)
    padded = [0, *document.tolist()]
    expected = 0.0
    for window in windows_of(0, 41, 16):
        for target in range(window.fresh, window.end):
            with torch.no_grad():
                logits = model.logits(torch.tensor([padded[window.begin : target + 1]]))[0, -1]
            expected -= logits.double().log_softmax(-1)[padded[target + 1]].item()
    short = np.random.default_rng(1).integers(2, 320, 3)
    assert nats_of(model, [short, document], 0, 16, alone)[1] == pytest.approx(expected, rel=1e-6)


def test_how_documents_are_batched_changes_next_to_nothing(
    base: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    documents = [draw.integers(2, 320, size) for size in (1, 5, 40, 3, 16, 17, 100, 9)]
    model = load_model(base, alone.device)
    together = nats_of(model, documents, 0, 16, alone)
    monkeypatch.setattr(evaluation, "_LOGITS_MAX", 1)
    np.testing.assert_allclose(nats_of(model, documents, 0, 16, alone), together, rtol=1e-6)
    shuffled = nats_of(model, documents[::-1], 0, 16, alone)[::-1]
    np.testing.assert_allclose(shuffled, together, rtol=1e-6)


def test_a_stopped_evaluation_goes_on_where_it_was(
    tmp_path: Path, site: Site, base: Path, delta: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = evaluate_work(TRAINED, VERSION)
    straight, halting = (_job(tmp_path / name, site, work, base, delta) for name in ("straight", "halting"))
    evaluate(straight, work, alone, lambda: False)
    looks = itertools.count(1)
    with pytest.raises(Stopped):
        evaluate(halting, work, alone, lambda: next(looks) > 4)  # one look a batch, one batch a language
    assert (halting.path / "CONTINUE").exists()
    scored = []
    real = evaluation._score

    def noting(model: Model, subject: Subject, *rest: Any) -> LanguageScore:
        scored.append(subject.name)
        return real(model, subject, *rest)

    monkeypatch.setattr(evaluation, "_score", noting)
    evaluate(halting, work, alone, lambda: False)
    assert scored == [TRAINED.name] * 2
    assert sha256(halting.path / "result" / "scores.json") == sha256(straight.path / "result" / "scores.json")


def test_a_version_after_a_delta_is_itself_again(
    tmp_path: Path, site: Site, base: Path, delta: Path, alone: Ranks
) -> None:
    """Subjects share the memory of their version."""
    again = Subject(name="z", version=BASE, delta=SPECIALIST)
    work = evaluate_work(VERSION, TRAINED, again)
    job = _job(tmp_path / "job", site, work, base, delta)
    evaluate(job, work, alone, lambda: False)
    found = _scores(job.path).subjects
    assert found["z"] == found[TRAINED.name] != found[VERSION.name]


def test_no_held_out_text_is_said(tmp_path: Path, site: Site, base: Path, delta: Path, alone: Ranks) -> None:
    job = _job(
        tmp_path / "job",
        msgspec.structs.replace(site, heldout_share=0.0),
        evaluate_work(VERSION),
        base,
        delta,
    )
    with pytest.raises(JobFailed, match="holds out no text in et, bg, el") as caught:
        evaluate(job, evaluate_work(VERSION), alone, lambda: False)
    assert caught.value.reason is FailureReason.NO_DATA


def test_a_language_the_site_does_not_hold_is_left_out(
    tmp_path: Path, site: Site, base: Path, delta: Path, alone: Ranks
) -> None:
    work = msgspec.structs.replace(evaluate_work(VERSION), languages=languages("et", "mt"))
    job = _job(tmp_path / "job", site, work, base, delta)
    evaluate(job, work, alone, lambda: False)
    assert set(_scores(job.path).subjects[VERSION.name]) == {"et"}


def test_special_tokens_in_a_text_are_text(tmp_path: Path, tokenizer_json: Path) -> None:
    """Or a document could end itself."""
    words = Words(digest=Digest("1" * 64), eos=0, vocabulary_size=320)
    [ids] = encoder(tokenizer_json, words)(["a<|endoftext|>b"])
    assert 0 not in ids
    (tmp_path / "a.txt").write_text("x<|endoftext|>y\n\nz")
    part = prepare(
        [source("et", tmp_path / "a.txt")],
        words,
        lambda: encoder(tokenizer_json, words),
        0.0,
        0,
        tmp_path / "c",
    )
    assert (part.tokens("private").tokens == 0).sum() == 2
