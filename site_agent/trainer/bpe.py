"""How a campaign's tokenizer is trained: byte-level BPE on public text, as many bytes of every language."""

import itertools
from collections.abc import Iterator

from consortium.canonical import replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.ids import Digest, Language
from consortium.jobs import Tokenizer
from consortium.models import END_OF_TEXT, PADDING
from consortium.store import ref_of
from site_agent.holdings import digest_of_documents, documents
from site_agent.prepared import by_access, training_split
from site_agent.text import Faults
from site_agent.trainer.folder import FailureReason, JobFailed, JobFolder, ProgressLog, write_contribution

_SPECIALS = (END_OF_TEXT, PADDING)
_VOCABULARY_MIN = 256 + len(_SPECIALS)  # every byte is a token, so that no text is unknown


def train_tokenizer(folder: JobFolder, work: Tokenizer) -> None:
    """Do the tokenizer job in ``folder``; its result is there when this returns.

    Raises JobFailed if a language has no public text. It takes seconds to minutes and cannot be stopped half-way.
    """
    if work.vocabulary_size < _VOCABULARY_MIN:
        raise BadInput(
            f"vocabulary_size {work.vocabulary_size} is less than the {_VOCABULARY_MIN} bytes and marks"
        )
    progress = ProgressLog(folder.path, 1)
    progress.report(0, 0, None, now=True)
    digests: dict[str, Digest] = {}
    texts: list[str] = []
    for language in sorted(set(work.languages)):
        chosen = _chosen(folder, work, language)
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
        special_tokens=list(_SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    trained: str = tokenizer.to_str()
    return trained


def _chosen(folder: JobFolder, work: Tokenizer, language: Language) -> dict[bytes, str]:
    """Public documents to train on, by digest: in the order of digests, until there are bytes enough."""
    sources = [source for source in folder.site.text if source.language == language]
    classes = by_access(sources)
    public = training_split(classes, folder.site.heldout_share, work.split_seed)["public"]
    if not public:
        raise JobFailed(
            FailureReason.NO_DATA,
            f"this site has no public {language} text to train a tokenizer on; add some to `text:` in its "
            "config with `access: public`",
        )
    wanted: set[bytes] = set()
    size = 0
    for digest in sorted(public):
        if size >= work.bytes_per_language:
            break
        wanted.add(digest)
        size += public[digest]
    found: dict[bytes, str] = {}
    for document in documents(classes["public"], Faults()):
        digest = document.digest
        if digest in wanted:
            found[digest] = document.text
    return dict(sorted(found.items()))


def _repeated(chosen: dict[bytes, str], size: int) -> Iterator[str]:
    """The texts over and over, until there are ``size`` bytes: a small language weighs as much as a large one."""
    for text in itertools.cycle(chosen.values()):
        data = text.encode()
        yield data[:size].decode(errors="ignore")
        size -= len(data)
        if size <= 0:
            return
