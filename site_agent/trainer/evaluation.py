"""How well models predict held-out text: nats and bytes of every document; the text itself stays here.

A document's tokens are predicted after EOS. One longer than the window is read in overlapping windows, and
each of its tokens is scored once, with at least half a window before it.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from consortium.canonical import decode, encode, replace
from consortium.codecs.reading import open_delta
from consortium.deltas import trained_tensors
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.ids import Language
from consortium.jobs import Evaluate, Subject
from consortium.manifests import LanguageScore, Scores
from consortium.store import ref_of
from consortium.tensors import Checkpoint
from site_agent.data.contents import Prepared
from site_agent.packed import Tokens
from site_agent.trainer.folder import (
    FailureReason,
    JobFailed,
    JobFolder,
    Preparation,
    ProgressLog,
    Stopped,
    write_contribution,
)
from site_agent.trainer.model import Model, load_model
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.words import prepared_languages

_LOGITS_MAX = 1 << 24  # numbers in the logits of one batch: 64 MiB in float32

Floats = npt.NDArray[np.float64]


class Window(NamedTuple):
    """Targets ``begin`` .. ``end`` of a document; those from ``fresh`` on were in no window before."""

    document: int
    begin: int
    fresh: int
    end: int


def evaluate(folder: JobFolder, work: Evaluate, ranks: Ranks, is_asked_to_stop: Callable[[], bool]) -> None:
    """Do the evaluation in ``folder``; its result is there when this returns.

    Raises Stopped with the languages scored so far on disk, JobFailed, BadInput.
    """
    preparing = ProgressLog(folder.path, len(work.subjects) * len(set(work.languages)), ranks.is_first)
    heldout = _heldout(folder, work, ranks, Preparation(folder, preparing, is_asked_to_stop))
    progress = ProgressLog(folder.path, len(work.subjects) * len(heldout), enabled=ranks.is_first)
    progress.report(0, 0, None, now=True)
    scores: dict[str, dict[Language, LanguageScore]] = {}
    model: Model | None = None
    tokens, loss, done = 0, None, 0

    def check() -> None:
        progress.report(done, tokens, loss)
        if ranks.agree(is_asked_to_stop()):
            if ranks.is_first and tokens:  # this start got further: another will, too
                folder.say_it_may_go_on()
            raise Stopped

    for number, subject in enumerate(sorted(work.subjects, key=lambda one: (one.version, one.delta or ""))):
        saved = folder.path / "checkpoint" / f"subject-{number}.json"
        found = _saved(saved, subject, heldout)
        done = number * len(heldout) + len(found)
        missing = {language: part for language, part in heldout.items() if language not in found}
        if missing:
            model = _dressed(folder, subject, model, ranks)
        for language, part in missing.items():
            assert model is not None
            found[language] = _score(model, subject, part, work.sequence_tokens, ranks, check)
            tokens += part.contents.heldout.tokens
            loss = math.fsum(found[language].nats) / part.contents.heldout.tokens
            done += 1
            progress.report(done, tokens, loss)
            if ranks.is_first:
                partial = Scores(site=folder.job.site, subjects={subject.name: found})
                write_bytes_atomically(saved, encode(partial))
        scores[subject.name] = found
    progress.report(len(work.subjects) * len(heldout), tokens, loss, now=True)
    if ranks.is_first:
        _deliver(folder, Scores(site=folder.job.site, subjects=scores), heldout)
    ranks.wait()


def windows_of(document: int, length: int, size: int) -> list[Window]:
    """Windows of at most ``size`` targets over a document of ``length`` tokens; each target is fresh once."""
    found = [Window(document, 0, 0, min(size, length))]
    while (seen := found[-1].end) < length:
        end = min(seen + max(1, size // 2), length)
        found.append(Window(document, end - size, seen, end))
    return found


@torch.inference_mode()
def nats_of(
    model: Model,
    documents: Sequence[Tokens],
    eos: int,
    sequence_tokens: int,
    ranks: Ranks,
    check: Callable[[], None] = lambda: None,
) -> Floats:
    """(documents,) sum of -log p over the tokens of each document, which has no EOS of its own.

    Windows of similar length share a batch; which ones depends on nothing but the documents.

    check  called by all ranks before each of them takes a batch; may raise
    """
    windows = [
        window
        for index, document in enumerate(documents)
        for window in windows_of(index, len(document), sequence_tokens)
    ]
    windows.sort(key=lambda window: (window.begin - window.end, window))
    nats = np.zeros(len(documents), np.float64)
    begin = turn = 0
    while begin < len(windows):
        longest = windows[begin].end - windows[begin].begin
        rows = max(1, _LOGITS_MAX // (longest * model.vocabulary_size))
        batch = windows[begin : begin + rows]
        if turn % ranks.world == 0:
            check()
        if turn % ranks.world == ranks.rank:
            _add_batch(nats, model, documents, batch, eos, ranks.device)
        begin, turn = begin + rows, turn + 1
    total = ranks.total(torch.from_numpy(nats).to(ranks.device))  # each is zero at all ranks but a few
    return total.cpu().numpy()


def _add_batch(
    nats: Floats,
    model: Model,
    documents: Sequence[Tokens],
    batch: Sequence[Window],
    eos: int,
    device: torch.device,
) -> None:
    longest = batch[0].end - batch[0].begin
    ids = np.full((len(batch), longest + 1), eos, np.int64)  # what follows a window is never looked at
    is_fresh = np.zeros((len(batch), longest), np.float64)
    for row, window in enumerate(batch):
        document = documents[window.document]
        context = document[window.begin - 1] if window.begin else eos
        ids[row, : window.end - window.begin + 1] = [context, *document[window.begin : window.end]]
        is_fresh[row, window.fresh - window.begin : window.end - window.begin] = 1.0
    rows = torch.from_numpy(ids).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        logits = model.logits(rows[:, :-1])
    losses = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    sums = (losses.view(len(batch), longest).double().cpu().numpy() * is_fresh).sum(axis=1)
    for window, value in zip(batch, sums, strict=True):
        nats[window.document] += value


def _heldout(
    folder: JobFolder, work: Evaluate, ranks: Ranks, preparation: Preparation
) -> dict[Language, Prepared]:
    if not work.subjects:
        raise JobFailed(FailureReason.BAD_INPUT, "the assignment names no model to evaluate")
    model = folder.version(work.subjects[0].version)
    languages = sorted(set(work.languages))
    prepared = prepared_languages(folder, ranks, languages, work.split_seed, model, preparation)
    found = {language: part for language, part in prepared.items() if part.contents.heldout.documents}
    if not found:
        raise JobFailed(
            FailureReason.NO_DATA,
            f"this site holds out no text in {', '.join(work.languages)}; add text in these languages, or "
            "raise `heldout_share`",
        )
    return found


def _dressed(folder: JobFolder, subject: Subject, before: Model | None, ranks: Ranks) -> Model:
    """The subject's model; in the memory of the one before if it is of the same version."""
    place = folder.version(subject.version)
    model = before if before and before.folder == place else load_model(place, ranks.device)
    model.network.eval()
    if subject.delta is not None:
        with Checkpoint(place) as base, open_delta(folder.input(subject.delta)) as delta:
            model.set_weights(trained_tensors(base, delta))
    elif model is before:
        with Checkpoint(place) as base:
            model.set_weights((name, base.array(name)) for name in base)
    return model


def _score(
    model: Model,
    subject: Subject,
    part: Prepared,
    sequence_tokens: int,
    ranks: Ranks,
    check: Callable[[], None],
) -> LanguageScore:
    documents = part.tokens("heldout").documents()
    eos = int(documents[0][-1])
    nats = nats_of(model, [document[:-1] for document in documents], eos, sequence_tokens, ranks, check)
    if not np.isfinite(nats).all():
        raise JobFailed(
            FailureReason.NON_FINITE,
            f"{subject.name} gives a probability of zero or none at all to some {part.contents.language} text; "
            "its weights are broken, train it again",
        )
    return LanguageScore(
        heldout=part.contents.heldout.digest,
        nats=tuple(nats.tolist()),
        bytes=tuple(part.heldout_bytes.tolist()),
    )


def _saved(path: Path, subject: Subject, heldout: dict[Language, Prepared]) -> dict[Language, LanguageScore]:
    """What an earlier start scored, where the text is still the same."""
    try:
        found = decode(path.read_bytes(), Scores, str(path)).subjects.get(subject.name, {})
    except (FileNotFoundError, BadInput):
        return {}
    digests = {language: part.contents.heldout.digest for language, part in heldout.items()}
    return {language: score for language, score in found.items() if digests.get(language) == score.heldout}


def _deliver(folder: JobFolder, scores: Scores, heldout: dict[Language, Prepared]) -> None:
    with folder.result() as result:
        path = result / "scores.json"
        write_bytes_atomically(path, encode(scores))
        contribution = replace(
            folder.contribution({"scores": ref_of(path)}),
            data={f"{language}.heldout": part.contents.heldout.digest for language, part in heldout.items()},
        )
        write_contribution(result, contribution)
    shutil.rmtree(folder.path / "checkpoint", ignore_errors=True)
