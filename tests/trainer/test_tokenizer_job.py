"""Training a campaign's tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from tokenizers import Tokenizer
from trainer_samples import (
    ALPHABETS,
    contribution,
    languages,
    make_job,
    make_site,
    sentences,
    tokenizer_work,
    training_split,
)

from consortium.errors import BadInput
from consortium.jobs import Tokenizer as TokenizerWork
from site_agent.data.merging import digest_of_documents
from site_agent.trainer.bpe import _repeated, train_bpe, train_tokenizer
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, Site

TEXTS = [text for language in ALPHABETS for text in sentences(language, 100)]


def _train(folder: Path, site: Site, work: TokenizerWork) -> Path:
    make_job(folder, site, work)
    train_tokenizer(JobFolder(folder), work)
    return folder / "result" / "tokenizer.json"


def test_every_text_comes_back(tmp_path: Path, site: Site) -> None:
    tokenizer = Tokenizer.from_file(str(_train(tmp_path / "job", site, tokenizer_work())))
    assert tokenizer.get_vocab_size() == 320
    assert [tokenizer.token_to_id(name) for name in ("<|endoftext|>", "<|pad|>")] == [0, 1]
    for text in ("Ġ tere\n\n  õhtust", "здравей", "ქართული 🙂\t\x00", *TEXTS[:3]):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    text = TEXTS[0]
    assert len(tokenizer.encode(text).ids) < len(text.encode())


def test_the_bytes_depend_on_the_text_alone(tmp_path: Path, site: Site) -> None:
    """Neither on the process, nor on the number of threads, nor on the files it lies in."""
    program = (
        "import sys; from site_agent.trainer.bpe import train_bpe; import json;"
        "sys.stdout.write(train_bpe(json.load(sys.stdin), 400))"
    )
    made = {train_bpe(TEXTS, 400)}
    for threads in ("1", "2", "4"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            input=json.dumps(TEXTS),
            capture_output=True,
            encoding="utf-8",
            check=True,
            env=os.environ
            | {"RAYON_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": threads},
        )
        made.add(done.stdout)
    assert len(made) == 1
    first = _train(tmp_path / "one", site, tokenizer_work()).read_bytes()
    moved = make_site(tmp_path / "elsewhere")
    for text in moved.text:
        path = Path(text.path)
        lines = path.read_bytes().splitlines(keepends=True)
        path.unlink()
        path.mkdir()
        for part in range(3):
            (path / f"{part}.jsonl").write_bytes(b"".join(lines[2 - part :: 3]))
    assert _train(tmp_path / "other", moved, tokenizer_work()).read_bytes() == first


def test_only_public_text_that_is_not_held_out_is_used(tmp_path: Path, site: Site) -> None:
    folder = tmp_path / "job"
    _train(folder, site, msgspec.structs.replace(tokenizer_work(), bytes_per_language=1 << 20))
    used = contribution(folder).data
    for language in ALPHABETS:
        sources = [text for text in site.text if text.language == language]
        public = training_split(sources, site.heldout_share, 0, tmp_path)["public"]
        assert used[f"{language}.public"] == digest_of_documents(public)


def test_a_small_language_weighs_as_much_as_a_large_one() -> None:
    for count in (2, 50):
        texts = list(_repeated({bytes([n]): text for n, text in enumerate(TEXTS[:count])}, 1000))
        assert sum(len(text.encode()) for text in texts) == pytest.approx(1000, abs=3)


def test_what_cannot_be_done_is_said(tmp_path: Path, site: Site) -> None:
    work = msgspec.structs.replace(tokenizer_work(), languages=languages("et", "mt"))
    with pytest.raises(JobFailed, match="no public mt text") as caught:
        _train(tmp_path / "a", site, work)
    assert caught.value.reason is FailureReason.NO_DATA
    with pytest.raises(BadInput, match="less than the 258"):
        _train(tmp_path / "b", site, tokenizer_work(vocabulary_size=200))
