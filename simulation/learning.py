"""What a simulated trainer learns: real safetensors of a few hundred numbers, in place of billions.

The model holds a skill for every language; training on a language raises it, and a held-out document costs the fewer
nats the more there is. So merges, gates and rebuilds are the real ones, on real bytes, and what comes out is a
function of the order alone: base, languages, steps, seed. It says nothing about real models.
"""

import json
from functools import lru_cache, partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
from msgspec import UNSET
from safetensors.numpy import save

from consortium.byte_level import ALPHABET, SPECIALS, tokenizer_of
from consortium.canonical import digest_of_fact, encode, replace
from consortium.codecs.reading import open_delta
from consortium.deltas import trained_tensors
from consortium.files import write_bytes_atomically
from consortium.ids import Digest, Language, digest_of
from consortium.jobs import Assignment, Evaluate, Merge, Tokenizer, Train
from consortium.manifests import LanguageScore, Scores
from consortium.store import ref_of
from consortium.tensors import Checkpoint, F32Array, TensorFile
from simulation.plan import SitePlan
from simulation.streams import stream
from site_agent.trainer import moments
from site_agent.trainer.delivery import deliver
from site_agent.trainer.folder import JobFolder, write_contribution
from site_agent.trainer.merging import merge_round
from site_agent.trainer.saves import Account, Made

SKILL, ROWS = "skill", "model.embed_tokens.weight"
MOMENTUM = f"mean/{SKILL}"
_WIDTH, _ROWS = 4, 64
_OWN_GAIN, _PUBLIC_GAIN = 0.08, 0.02  # of a whole job; far within the norms of a standard admission
_DOCUMENTS_MAX = 24


def base_files(languages: tuple[Language, ...]) -> dict[str, bytes]:
    """The model that a simulated campaign begins with, as files."""
    weights = {
        SKILL: np.full((len(languages), _WIDTH), 0.5, np.float32),
        ROWS: (np.arange(_ROWS * 2, dtype=np.float32).reshape(_ROWS, 2) % 7 - 3) / 4,
    }
    config = {"dtype": "float32", "model_type": "simulated", "vocab_size": _ROWS}
    return {
        "config.json": json.dumps(config, sort_keys=True).encode(),
        "model.safetensors": save(weights, {"format": "pt"}),
    }


class Trainer(Protocol):
    """Whoever does a site's orders."""

    def finish(self, folder: JobFolder, steps: int, seconds: float, spoilt: bool = False) -> None:
        """Write ``result/`` as of ``steps``; raises SprachbundError if it cannot."""


class Pupil:
    """Whoever works at one site: does orders in their folders.

    languages  of the campaign, in the order of the model's rows
    harms      share of the training jobs that make the model worse
    """

    def __init__(
        self, site: SitePlan, seed: int, languages: tuple[Language, ...], harms: float = 0.0
    ) -> None:
        self._site, self._harms = site, harms
        self._seed = seed
        self._rows = {language: row for row, language in enumerate(languages)}

    def finish(self, folder: JobFolder, steps: int, seconds: float, spoilt: bool = False) -> None:
        """Write ``result/``. ``steps``: that a training job has done; ``spoilt``: so that nobody should admit it."""
        work = folder.job.work
        match work:
            case Train():
                self._train(folder, work, steps, seconds, spoilt)
            case Evaluate():
                self._evaluate(folder, work)
            case Tokenizer():
                _make_tokenizer(folder, work)
            case Merge():
                merge_round(folder, work, lambda: False)

    def _train(self, folder: JobFolder, work: Train, steps: int, seconds: float, spoilt: bool) -> None:
        share = steps / max(1, work.steps)
        with Checkpoint(folder.base) as base:
            weights: dict[str, F32Array] = {name: base.array(name) for name in base}
        gains = np.zeros(weights[SKILL].shape[0], np.float32)
        for language in work.public_languages:
            gains[self._rows[language]] += np.float32(_PUBLIC_GAIN * work.replay_share * share)
        for language in work.languages:
            gains[self._rows[language]] += np.float32(_OWN_GAIN * share / len(work.languages))
        if self._harms and stream(self._seed, "harm", folder.job.attempt).random() < self._harms:
            gains = -gains
        weights[SKILL] = (weights[SKILL] + gains[:, None]).astype(np.float32)
        noise = np.frombuffer(stream(work.seed, "noise").randbytes(_ROWS * 2), np.uint8).astype(np.float32)
        weights[ROWS] = weights[ROWS] + ((noise - np.float32(128)) / np.float32(65536)).reshape(_ROWS, 2)
        if spoilt:
            weights[SKILL] = weights[SKILL] + np.float32(1e6)
        account, left = Account(), None
        if moments.are_kept(work):
            account, mean = _momentum(folder, work, gains)
            weights[SKILL] = weights[SKILL] + mean[:, None]
            left = moments.Left(shapes={MOMENTUM: mean.shape}, array=lambda name: mean)
        account = replace(account, step=steps, updates=steps, seconds=round(seconds, 3))
        made, counts = self._made(work, steps), partial(_counts, work, steps)
        deliver(folder, work, weights, account, made, counts, left=left)

    def _made(self, work: Train, steps: int) -> Made:
        total = steps * work.batch_sequences * work.sequence_tokens
        public = total if not work.languages else int(total * work.replay_share)
        tokens: dict[Language, int] = {}
        public_tokens: dict[Language, int] = {}
        for index, language in enumerate(work.public_languages):
            public_tokens[language] = _part(public, len(work.public_languages), index)
            tokens[language] = public_tokens[language]
        for index, language in enumerate(work.languages):
            tokens[language] = tokens.get(language, 0) + _part(total - public, len(work.languages), index)
        data = {f"{language}.private": holding_digest(self._site, language) for language in work.languages}
        return Made(
            data=data,
            tokens=dict(sorted(tokens.items())),
            public_tokens=dict(sorted(public_tokens.items())),
            software={"model": "simulated"},
            weights={},
        )

    def _evaluate(self, folder: JobFolder, work: Evaluate) -> None:
        subjects: dict[str, dict[Language, LanguageScore]] = {}
        for subject in work.subjects:
            with Checkpoint(folder.version(subject.version)) as base:
                if subject.delta is None:
                    skill = base.array(SKILL)
                else:
                    with open_delta(folder.input(subject.delta)) as delta:
                        skill = dict(trained_tensors(base, delta))[SKILL]
            mark = subject.version + (subject.delta or "")
            subjects[subject.name] = {
                language: self._score(language, float(skill[self._rows[language]].mean()), mark)
                for language in work.languages
            }
        with folder.result() as result:
            path = result / "scores.json"
            write_bytes_atomically(path, encode(Scores(site=folder.job.site, subjects=subjects)))
            write_contribution(result, folder.contribution({"scores": ref_of(path)}))

    def _score(self, language: Language, skill: float, mark: str) -> LanguageScore:
        held = self._site.languages.get(language) or self._site.public[language]
        documents = _documents(self._site.name, language, min(held.heldout, _DOCUMENTS_MAX))
        bits = 4.0 / (1.0 + max(0.0, skill))
        chance = int(digest_of(f"{mark} {language}".encode())[:8], 16) / 2**32
        return LanguageScore(
            heldout=digest_of(f"held out {language} {self._site.name}".encode()),
            nats=tuple(
                round(size * bits * 0.693 * (0.98 + 0.04 * hard + 0.002 * chance), 6)
                for size, hard in documents
            ),
            bytes=tuple(size for size, _ in documents),
        )


@lru_cache(maxsize=4096)
def _documents(site: str, language: str, count: int) -> tuple[tuple[int, float], ...]:
    """Of each held-out document its bytes, and how hard it is."""
    dice = stream(0, "documents", site, language)
    return tuple((200 + int(dice.random() * 2000), dice.random()) for _ in range(count))


def holding_digest(site: SitePlan, language: Language, access: str = "private") -> Digest:
    return digest_of(f"{site.name} {language} {access}".encode())


def _part(total: int, among: int, index: int) -> int:
    return total // among + (1 if index < total % among else 0)


def _counts(work: Train, steps: int) -> npt.NDArray[np.int64]:
    total = steps * work.batch_sequences * work.sequence_tokens
    return np.full(_ROWS, total // _ROWS, np.int64)


def _momentum(folder: JobFolder, work: Train, gains: F32Array) -> tuple[Account, F32Array]:
    """What the pupil learns besides where moments are kept: a tenth of what it gained, job after job ever less."""
    account, before = Account(), np.zeros_like(gains)
    if work.moments is not UNSET and moments.are_here(folder, work, {MOMENTUM: gains.shape}):
        with TensorFile(folder.moments) as file:
            account, before = moments.account_of(work, file), file.array(MOMENTUM)
    return account, (before + gains) / np.float32(10)


def _make_tokenizer(folder: JobFolder, work: Tokenizer) -> None:
    seal = digest_of_fact(replace(work, split_seed=0))
    words = [f"<{seal}>"][: work.vocabulary_size - len(SPECIALS) - len(ALPHABET)]
    with folder.result() as result:
        path = result / "tokenizer.json"
        write_bytes_atomically(path, json.dumps(tokenizer_of(words, []), sort_keys=True).encode())
        write_contribution(result, folder.contribution({"tokenizer": ref_of(path)}))


def size_of_order(job: Assignment) -> int:
    """Optimizer steps of a training order; 1 of another."""
    return job.work.steps if isinstance(job.work, Train) else 1
