"""How a campaign's tokenizer is trained: byte-level BPE on public text, as many bytes of every language."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from consortium.byte_level import ALPHABET, SPECIALS
from consortium.canonical import replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.ids import Digest, Language
from consortium.jobs import Tokenizer
from consortium.store import ref_of
from site_agent.data.contents import Plan, plan_of, ranges_of
from site_agent.data.merging import PARTS, digest_of_documents
from site_agent.data.pool import work_through
from site_agent.data.reading import UnitReader
from site_agent.data.segments import Split
from site_agent.trainer.folder import (
    FailureReason,
    JobFailed,
    JobFolder,
    Preparation,
    ProgressLog,
    write_contribution,
)

_VOCABULARY_MIN = len(ALPHABET) + len(SPECIALS)  # every byte is a token, so that no text is unknown


def train_tokenizer(
    folder: JobFolder, work: Tokenizer, is_asked_to_stop: Callable[[], bool] = lambda: False
) -> None:
    """Do the tokenizer job in ``folder``; its result is there when this returns.

    Raises JobFailed if a language has no public text, Stopped while text is read; the training itself takes
    seconds to minutes and cannot be stopped half-way.
    """
    if work.vocabulary_size < _VOCABULARY_MIN:
        raise BadInput(
            f"vocabulary_size {work.vocabulary_size} is less than the {_VOCABULARY_MIN} bytes and marks"
        )
    progress = ProgressLog(folder.path, 1)
    progress.report(0, 0, None, now=True)
    preparation = Preparation(folder, progress, is_asked_to_stop)
    digests: dict[str, Digest] = {}
    texts: list[str] = []
    for language in sorted(set(work.languages)):
        chosen = _chosen(folder, work, language, preparation)
        digests[f"{language}.public"] = digest_of_documents(chosen)
        texts += _repeated(chosen, work.bytes_per_language)
    trained = train_bpe(texts, work.vocabulary_size)
    with folder.result() as result:
        path = result / "tokenizer.json"
        write_bytes_atomically(path, trained.encode())
        write_contribution(
            result,
            replace(folder.contribution({"tokenizer": ref_of(path)}), steps=1, planned_steps=1, data=digests),
        )
    progress.report(1, 0, None, now=True)


def train_bpe(texts: list[str], vocabulary_size: int) -> str:
    """The ``tokenizer.json`` of a byte-level BPE (GPT-2's: Radford et al. 2019) over ``texts``.

    The same texts give the same bytes, whatever the number of threads. Smaller than asked for if the texts
    have no more pairs that occur twice.
    """
    from tokenizers import Tokenizer as Tokens
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokens(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(SPECIALS),
        initial_alphabet=list(ALPHABET),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained: str = tokenizer.to_str()
    return trained


def _chosen(
    folder: JobFolder, work: Tokenizer, language: Language, preparation: Preparation
) -> dict[bytes, str]:
    """Public documents to train on, by digest: in the order of digests, until there are bytes enough."""
    sources = [source for source in folder.site.text if source.language == language]
    wanted: set[bytes] = set()
    if sources:
        split = Split(heldout_share=folder.site.heldout_share, seed=work.split_seed)
        plan = plan_of(sources, None, split, Path(folder.site.cache) / "choices")
        work_through(
            [plan],
            tell=lambda now: preparation.tell(now.language, now.read_bytes),
            merge=False,
            beat=preparation.beat,
        )
        wanted = _first_public(plan, work.bytes_per_language)
    if not wanted:
        raise JobFailed(
            FailureReason.NO_DATA,
            f"this site has no public {language} text to train a tokenizer on; add some to `text:` in its "
            "config with `access: public`",
        )
    found: dict[bytes, str] = {}
    for unit in plan.units_in("public"):
        for document in UnitReader(unit, None, split, None).documents():
            preparation.beat()
            digest = document.digest
            if digest in wanted:
                found[digest] = document.text
    shutil.rmtree(plan.folder, ignore_errors=True)
    return dict(sorted(found.items()))


def _first_public(plan: Plan, bytes_wanted: int) -> set[bytes]:
    """The first public documents by digest that make up so many bytes, or all there are."""
    wanted: set[bytes] = set()
    size = 0
    for found in ranges_of(plan):
        for index in np.flatnonzero(found.parts_N == PARTS.index("public")).tolist():
            if size >= bytes_wanted:
                return wanted
            wanted.add(found.digests_N[index : index + 1].tobytes())
            size += int(found.bytes_N[index])
    return wanted


def _repeated(chosen: dict[bytes, str], size: int) -> Iterator[str]:
    """The texts over and over, until there are ``size`` bytes: a small language weighs as much as a large one."""
    for text in itertools.cycle(chosen.values()):
        data = text.encode()
        yield data[:size].decode(errors="ignore")
        size -= len(data)
        if size <= 0:
            return
