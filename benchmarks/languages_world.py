"""What the experiment on languages happens in: text and sites, a base, and jobs done in this process.

Text is that of the demo: translations that two PyPI packages ship (``console.corpora``). Jobs are job directories
given to the site's own trainer, merges are the coordinator's, scores are an evaluation job's; nothing is done another
way than in a campaign, only without processes, network and ledger.
"""

import contextlib
import io
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from console.corpora import LICENCES, PUBLIC_SHARE, write_corpora
from consortium.canonical import Fact, decode, digest_of_fact, encode, replace
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import (
    Assignment,
    Evaluate,
    Merge,
    Optimizer,
    Part,
    Purpose,
    Subject,
    Tokenizer,
    Train,
    Work,
)
from consortium.manifests import Contribution, FileRef, LanguageScore, Scores
from consortium.merging.job import make_version
from consortium.merging.recipe import PLAIN_AVERAGE, Recipe
from consortium.versions import OUTER_STATE, manifest_of
from site_agent.config import Text
from site_agent.text import is_heldout
from site_agent.trainer.bpe import train_tokenizer
from site_agent.trainer.evaluation import evaluate
from site_agent.trainer.folder import JobFolder, Site
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.training import train

Words = Literal["alike", "unlike"]

SITES = {
    SiteName("centre"): (Language("cs"), Language("hu")),
    SiteName("north"): (Language("da"), Language("fi")),
    SiteName("south"): (Language("bg"), Language("el"), Language("sq")),
    SiteName("west"): (Language("ga"), Language("nl")),
}
LANGUAGES = tuple(sorted(language for languages in SITES.values() for language in languages))
LOW = {
    Language("ga"): 0.25,
    Language("sq"): 1.0,
}  #: share of the documents there is; Albanian has few by itself
EVERYTHING = SiteName("everything")  #: holds all text: for what no consortium could do, and to score
PUBLIC = SiteName("public")  #: holds the public text alone
NONSENSE = SiteName("nonsense")  #: what a poisoned ``ATTACKER`` trains on
ATTACKER = SiteName("centre")
SPLIT_SEED = 0  # held-out documents are the same for all seeds: those vary weights and order


class Scale(Fact):
    """How large an experiment is."""

    hidden: int = 64
    layers: int = 2
    vocabulary: int = 1024
    sequence_tokens: int = 64
    batch_sequences: int = 4  #: of one site
    steps: int = 300  #: of one site
    seed_steps: int = 300
    seed_sequences: int = 16
    learning_rate: float = 3e-3
    heldout_share: float = 0.1
    documents: int = 0  #: of each file that are used; 0: all
    round_share: float = 1.0  #: of a variant's H that a round has

    def round_steps(self, wanted: int) -> int:
        """Steps of a round where a variant wants so many; 0: all."""
        return min(self.steps, math.ceil(wanted * self.round_share)) or self.steps

    @property
    def config(self) -> dict[str, object]:
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": self.hidden,
            "intermediate_size": -(-self.hidden * 8 // 3 // 16) * 16,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": self.sequence_tokens,
            "tie_word_embeddings": True,
        }


SHORT = Scale(
    hidden=16,
    layers=1,
    vocabulary=384,
    sequence_tokens=16,
    batch_sequences=2,
    steps=4,
    seed_steps=4,
    seed_sequences=4,
    heldout_share=0.2,
    documents=40,
    round_share=0.04,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A version on disk."""

    folder: Path
    digest: Digest
    outer: FileRef | None = None  #: what the outer optimizer keeps, in the same folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A training job's result."""

    path: Path
    ref: FileRef
    base: Digest
    tokens: int
    steps: int
    residual: Path | None
    moments: Path | None
    languages: tuple[Language, ...]

    @property
    def cohort(self) -> str:
        return "+".join(self.languages)

    @property
    def left(self) -> dict[str, Path]:
        """What its site keeps of it for the next: by the names that an order, a job directory and a result have."""
        both = {"residual": self.residual, "moments": self.moments}
        return {name: path for name, path in both.items() if path is not None}


class World:
    """Text, tokenizer and bases below ``folder``, made once; jobs of one seed.

    words  whether private text has a public share of its own kind, or the public text is another package's
    """

    def __init__(self, folder: Path, words: Words, scale: Scale, ranks: Ranks) -> None:
        self.scale, self._ranks = scale, ranks
        self._folder = folder / f"{words}-{digest_of_fact(scale)[:8]}"
        text = self._folder / "text"
        if not text.exists():
            with fresh_folder(text) as filling:
                _write_text(filling, PUBLIC_SHARE if words == "alike" else 0.0, scale)
        self._sites = self._sites_of(text)
        self._tokenizer = self._folder / "tokenizer" / "result" / "tokenizer.json"
        if not self._tokenizer.exists():
            shutil.rmtree(self._folder / "tokenizer", ignore_errors=True)
            work = Tokenizer(languages=LANGUAGES, vocabulary_size=scale.vocabulary, bytes_per_language=40_000)
            train_tokenizer(self._job(self._folder / "tokenizer", PUBLIC, work), work)

    def base(self, seed: int) -> Model:
        """The model that all variants of a seed begin with: drawn, then trained on public text."""
        place = self._folder / f"base-{seed}"
        if not place.exists():
            drawn, scratch = place.with_name(f"drawn-{seed}"), place.with_name(f"seed-round-{seed}")
            for left in (drawn, scratch):
                shutil.rmtree(left, ignore_errors=True)
            shutil.copytree(self._drawn(seed), drawn)
            shutil.copyfile(self._tokenizer, drawn / "tokenizer.json")
            scratch.mkdir()
            model = Model(folder=drawn, digest=manifest_of(drawn).digest)
            order = self.order(
                model,
                (),
                seed=seed,
                steps=self.scale.seed_steps,
                batch_sequences=self.scale.seed_sequences,
                replay_share=1.0,
            )
            optimizer = replace(order.optimizer, warmup_steps=min(20, order.steps), final_share=0.3)
            delta = self.train(scratch / "job", PUBLIC, model, replace(order, optimizer=optimizer))
            made = self.merge(model, [(delta, 1)], PLAIN_AVERAGE, scratch / "model")
            made.folder.rename(place)
            for left in (drawn, scratch):
                shutil.rmtree(left)
        return Model(folder=place, digest=manifest_of(place).digest)

    def _drawn(self, seed: int) -> Path:
        """A folder with new weights: the same for all texts, which differ in the words that tokens stand for."""
        place = self._folder.with_name(f"drawn-{digest_of_fact(self.scale)[:8]}-{seed}")
        if not place.exists():
            config = place.with_suffix(".json")
            config.write_text(json.dumps({**self.scale.config, "vocab_size": self.scale.vocabulary}), "utf-8")
            # a process of its own, as the coordinator has it. -P: without this folder on the path, where
            # transformers would take our modules for packages that it knows
            command = [sys.executable, "-P", "-m", "consortium.models", "--config", config]
            command += ["--seed", str(seed), "--tokenizer", self._tokenizer, "--out", place]
            subprocess.run(command, check=True, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[1])
        return place

    def order(self, model: Model, languages: Sequence[Language], **changes: object) -> Train:
        """A training job on ``model`` as the experiment's campaign has it."""
        scale = self.scale
        order = Train(
            base=model.digest,
            languages=tuple(languages),
            public_languages=LANGUAGES,
            replay_share=0.5,
            epochs_max=8.0,
            steps=scale.steps,
            batch_sequences=scale.batch_sequences,
            sequence_tokens=scale.sequence_tokens,
            optimizer=Optimizer(learning_rate=scale.learning_rate, warmup_steps=5),
            seed=0,
            split_seed=SPLIT_SEED,
            checkpoint_steps=1 << 30,
        )
        return replace(order, **changes)

    def train(
        self,
        place: Path,
        site: SiteName,
        model: Model,
        order: Train,
        before: Delta | None = None,
        steps_done: int | None = None,
    ) -> Delta:
        """What ``site`` makes of ``order`` in the job directory ``place``.

        before      its last delta, if the order names what that left
        steps_done  after so many it is asked for what it has; None: after all
        """
        folder = self._job(place, site, order, base=model)
        for name, path in before.left.items() if before else ():
            (place / f"{name}.safetensors").symlink_to(path)
        looks = iter(range(1, 1 << 30))
        asked: Callable[[], bool] = lambda: steps_done is not None and next(looks) >= steps_done  # noqa: E731
        with contextlib.redirect_stderr(io.StringIO()):  # the memory plan
            train(folder, order, self._ranks, lambda: False, asked)
        return self.delta_of(place, model, order)

    def delta_of(self, place: Path, model: Model, order: Train) -> Delta:
        """What the job directory ``place`` has as its result."""
        path = place / "result" / "contribution.json"
        said: Contribution = decode(path.read_bytes(), Contribution, str(path))
        residual, moments = (
            path if (path := place / "result" / f"{name}.safetensors").exists() else None
            for name in ("residual", "moments")
        )
        return Delta(
            path=place / "result" / "delta.safetensors",
            ref=said.artifacts["delta"],
            base=model.digest,
            tokens=sum(said.tokens.values()),
            steps=said.steps,
            residual=residual,
            moments=moments,
            languages=order.languages,
        )

    def merge(self, model: Model, weighed: Sequence[tuple[Delta, int]], recipe: Recipe, place: Path) -> Model:
        """The version that a recipe makes of deltas, with their weights, on ``model``."""
        files = {delta.ref.digest: delta.path for delta, _ in weighed}
        if model.outer is not None:
            files[model.outer.digest] = model.folder / OUTER_STATE
        uniform = recipe.weights == "uniform"
        parts = [
            Part(delta=delta.ref, weight=1 if uniform else weight, cohort=delta.cohort)
            for delta, weight in weighed
        ]
        work = Merge(
            base=model.digest,
            outer_state={} if model.outer is None else {OUTER_STATE: model.outer},
            parts=tuple(sorted(parts, key=lambda part: part.delta.digest)),
            recipe=recipe,
            languages=LANGUAGES,
        )
        manifest = make_version(work, model.folder, files.__getitem__, place, threads=1)
        return Model(folder=place, digest=manifest.digest, outer=manifest.outer_state.get(OUTER_STATE))

    def scores(
        self,
        place: Path,
        site: SiteName,
        models: Mapping[str, tuple[Model, Delta | None]],
        languages: Sequence[Language] = LANGUAGES,
    ) -> Scores:
        """Scores of models, or of a model with a delta, on the text that ``site`` holds out."""
        subjects = tuple(
            Subject(name=name, version=model.digest, delta=None if delta is None else delta.ref.digest)
            for name, (model, delta) in models.items()
        )
        work = Evaluate(
            subjects=subjects,
            languages=tuple(languages),
            sequence_tokens=self.scale.sequence_tokens,
            split_seed=SPLIT_SEED,
        )
        folder = self._job(place, site, work)
        for model, delta in models.values():
            (place / "versions").mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                folder.version(model.digest).symlink_to(model.folder)
            if delta is not None:
                (place / "inputs").mkdir(exist_ok=True)
                folder.input(delta.ref.digest).symlink_to(delta.path)
        with contextlib.redirect_stderr(io.StringIO()):
            evaluate(folder, work, self._ranks, lambda: False)
        found: Scores = decode((place / "result" / "scores.json").read_bytes(), Scores, "")
        shutil.rmtree(place)
        return found

    def _job(self, place: Path, site: SiteName, work: Work, base: Model | None = None) -> JobFolder:
        place.mkdir(parents=True)
        order = Assignment(
            job=JobId("languages-r1-job"),
            attempt=AttemptId("languages-r1-job.a1"),
            campaign=CampaignId("languages"),
            round=1,
            site=site,
            purpose=Purpose.ROUND,
            work=work,
            inputs=(),
            tokenizer=None,
        )
        write_bytes_atomically(place / "job.json", encode(order))
        write_bytes_atomically(place / "site.json", encode(self._sites[site]))
        if not isinstance(work, Tokenizer):
            (place / "tokenizer.json").symlink_to(self._tokenizer)
        if base is not None:
            (place / "base").symlink_to(base.folder)
        return JobFolder(place)

    def _sites_of(self, text: Path) -> dict[SiteName, Site]:
        def source(side: str, language: Language) -> Text:
            return Text(
                language=language,
                path=str((text / side / f"{language}.jsonl").resolve()),
                access="public" if side.startswith("public") else "private",
                licence=LICENCES["gramps"],
            )

        public = [source("public", language) for language in LANGUAGES]
        shuffled = [source("public-nonsense", language) for language in LANGUAGES]
        held = {site: [source("private", x) for x in languages] + public for site, languages in SITES.items()}
        held[EVERYTHING] = [source("private", language) for language in LANGUAGES] + public
        held[PUBLIC] = public
        held[NONSENSE] = [source("nonsense", language) for language in SITES[ATTACKER]] + shuffled
        cache = str((self._folder / "cache").resolve())
        return {
            site: Site(text=tuple(texts), heldout_share=self.scale.heldout_share, cache=cache)
            for site, texts in held.items()
        }


def bits_per_byte(scores: Mapping[Language, LanguageScore]) -> dict[Language, float]:
    """Of every language, over all its held-out documents."""
    log2_e = 1.4426950408889634
    return {language: log2_e * sum(one.nats) / sum(one.bytes) for language, one in sorted(scores.items())}


def _write_text(folder: Path, public_share: float, scale: Scale) -> None:
    """``private`` and ``public`` text, and the same with its letters shuffled as ``nonsense``."""
    write_corpora(folder, LANGUAGES, public_share)
    for side in ("private", "public"):
        for language in LANGUAGES:
            path = folder / side / f"{language}.jsonl"
            documents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            documents = [one for one in documents if _is_kept(one["id"], language)]
            documents = documents[: scale.documents or None]
            _write_lines(path, documents)
            name = "nonsense" if side == "private" else "public-nonsense"
            shuffled = [{**one, "text": _shuffled(one["text"])} for one in documents]
            _write_lines(folder / name / f"{language}.jsonl", shuffled)


def _is_kept(identity: str, language: Language) -> bool:
    """Whether a document is used, where a language is to have fewer than there are."""
    return is_heldout(f"kept/{identity}", SPLIT_SEED, LOW.get(language, 1.0))


def _shuffled(text: str) -> str:
    letters = list(text)
    random.Random(text).shuffle(letters)
    return "".join(letters)


def _write_lines(path: Path, documents: Iterator[dict[str, str]] | Sequence[dict[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps(one, ensure_ascii=False, sort_keys=True) + "\n" for one in documents)
    write_bytes_atomically(path, "".join(lines).encode())
