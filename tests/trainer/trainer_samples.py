"""A site with three small languages, and job directories for its trainer."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from warm_trainer import Trainer, started

from consortium.canonical import encode
from consortium.ids import AttemptId, CampaignId, Digest, JobId, Language, SiteName
from consortium.jobs import Assignment, Evaluate, Optimizer, Purpose, Subject, Tokenizer, Train, Work
from consortium.manifests import Contribution
from site_agent.config import Text
from site_agent.data.contents import plan_of, ranges_of
from site_agent.data.merging import PARTS
from site_agent.data.pool import work_through
from site_agent.data.segments import Split
from site_agent.record import checkpoint_of
from site_agent.trainer.folder import Site

ALPHABETS = {"et": "aeiklmnõst", "bg": "абвгдеинос", "el": "αβγδεικνοσ"}
CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
BASE = Digest("0" * 64)


def sentences(language: str, count: int, seed: int = 0) -> list[str]:
    """Sentences of words that follow each other in a pattern, so that there is something to learn."""
    draw = np.random.default_rng([seed, sum(map(ord, language))])
    letters = list(ALPHABETS[language])
    words = ["".join(draw.choice(letters, 2 + index % 5)) for index in range(40)]
    return [
        " ".join(words[(start + 7 * place) % 40] for place in range(int(draw.integers(4, 30))))
        + f" {number}."
        for number, start in enumerate(draw.integers(0, 40, count))
    ]


def write_jsonl(path: Path, texts: list[str], prefix: str = "m") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"id": f"{prefix}{n}", "text": text}) for n, text in enumerate(texts)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def source(language: str, path: Path, access: Any = "private", **more: Any) -> Text:
    return Text(language=Language(language), path=str(path), access=access, licence="CC0-1.0", **more)


def make_site(folder: Path) -> Site:
    """Private et and bg, public et, bg and el; translations share ids."""
    texts = []
    for language in ALPHABETS:
        write_jsonl(folder / "public" / f"{language}.jsonl", sentences(language, 120, seed=1), "p")
        texts.append(source(language, folder / "public" / f"{language}.jsonl", "public"))
        if language != "el":
            write_jsonl(folder / "own" / f"{language}.jsonl", sentences(language, 200), "o")
            texts.append(source(language, folder / "own" / f"{language}.jsonl"))
    return Site(text=tuple(texts), heldout_share=0.15, cache=str(folder / "cache"))


def languages(*names: str) -> tuple[Language, ...]:
    return tuple(Language(name) for name in names)


def train_work(**changes: Any) -> Train:
    work = Train(
        base=BASE,
        languages=languages("bg", "et"),
        public_languages=languages("bg", "el", "et"),
        replay_share=0.5,
        steps=12,
        batch_sequences=4,
        sequence_tokens=16,
        optimizer=Optimizer(learning_rate=3e-3, warmup_steps=3),
        seed=7,
        checkpoint_steps=4,
        delta_dtype="fp32",
    )
    return msgspec.structs.replace(work, **changes)


def tokenizer_work(vocabulary_size: int = 320) -> Tokenizer:
    return Tokenizer(
        languages=languages(*ALPHABETS), vocabulary_size=vocabulary_size, bytes_per_language=4000
    )


def evaluate_work(*subjects: Subject, sequence_tokens: int = 16) -> Evaluate:
    return Evaluate(subjects=subjects, languages=languages(*ALPHABETS), sequence_tokens=sequence_tokens)


def make_job(folder: Path, site: Site, work: Work, base: Path | None = None) -> Path:
    """A job directory as an agent lays it out."""
    folder.mkdir(parents=True)
    job = Assignment(
        job=JobId("t-r1-train-sofia"),
        attempt=AttemptId("t-r1-train-sofia.a1"),
        campaign=CampaignId("t"),
        round=1,
        site=SiteName("sofia"),
        purpose=Purpose.ROUND,
        work=work,
        inputs=(),
        tokenizer=None,
    )
    (folder / "job.json").write_bytes(encode(job))
    (folder / "site.json").write_bytes(encode(site))
    if base is not None:
        shutil.copy(base / "tokenizer.json", folder / "tokenizer.json")
        place = folder / "versions" / BASE if isinstance(work, Evaluate) else folder / "base"
        place.parent.mkdir(exist_ok=True)
        place.symlink_to(base)
    return folder


#: The trainer, but after so many steps of this life it does nothing until it is killed or asked to stop.
_WAITING = """
import sys, time
from site_agent.trainer import __main__ as program
looks, stop, steps = 0, program._Wishes.stop, int(sys.argv[1])
def waiting(wishes):
    global looks
    looks += 1
    while looks >= steps and not stop(wishes):
        time.sleep(0.01)
    return stop(wishes)
program._Wishes.stop = waiting
program._leave(program.main(sys.argv[2:]))
"""


def start_and_wait(folder: Path, steps: int) -> AbstractContextManager[Trainer]:
    """So that whoever is to strike it meanwhile is never too late."""
    return started([str(steps), str(folder)], _WAITING)


def wait_for_checkpoint(folder: Path, trainer: Trainer, step: int) -> None:
    """Until one of ``step`` steps, or more, is whole."""
    while checkpoint_of(folder)[0] < step:
        assert trainer.poll() is None, trainer.said()
        time.sleep(0.005)


def run(folder: Path) -> int:
    """The exit code of the trainer, which had torch at its first line."""
    with started([str(folder)]) as trainer:
        code = trainer.wait()
    print(trainer.said())
    return code


def run_apart(folder: Path) -> int:
    """The same of a program that is started by itself."""
    return subprocess.run([sys.executable, "-m", "site_agent.trainer", str(folder)], check=False).returncode


def contribution(folder: Path) -> Contribution:
    return msgspec.json.decode((folder / "result" / "contribution.json").read_bytes(), type=Contribution)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def training_split(
    sources: list[Text], heldout_share: float, seed: int, cache: Path
) -> dict[str, dict[bytes, int]]:
    """``private``, ``public`` and ``heldout``: document digest -> UTF-8 bytes."""
    plan = plan_of(sources, None, Split(heldout_share=heldout_share, seed=seed), cache)
    work_through([plan], merge=False)
    parts: dict[str, dict[bytes, int]] = {part: {} for part in PARTS}
    for found in ranges_of(plan):
        for index, part in enumerate(found.parts_N.tolist()):
            digest = found.digests_N[index : index + 1].tobytes()
            parts[PARTS[part]][digest] = int(found.bytes_N[index])
    shutil.rmtree(plan.folder)
    return parts
