"""How text becomes the tokens of a model: its tokenizer, and the token that ends a document."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consortium.errors import BadInput
from consortium.ids import digest_of
from consortium.models import end_of_document
from site_agent.data.segments import Encode, Words


def words_of(tokenizer: Path, config: Mapping[str, Any]) -> Words:
    """What prepared text depends on. ``config`` is that of the model; its EOS separates documents."""
    eos = config.get("eos_token_id")
    if isinstance(eos, list):
        eos = eos[0] if eos else None
    vocabulary_size = config.get("vocab_size")
    if not isinstance(eos, int) or not isinstance(vocabulary_size, int) or not 0 <= eos < vocabulary_size:
        raise BadInput(
            f"config.json: eos_token_id {eos!r} must be one of vocab_size {vocabulary_size!r} tokens; "
            "it separates documents"
        )
    return Words(digest=digest_of(_read(tokenizer)), eos=eos, vocabulary_size=vocabulary_size)


def words_alone(tokenizer: Path, eos: int | None) -> Words:
    """The same without the model's config: EOS as given, else the token that our models end documents with.

    Raises BadInput if the tokenizer has no such token. A model whose vocabulary crosses 65,536 tokens by
    padding alone stores tokens wider than its tokenizer needs; such text is made anew by its first job.
    """
    loaded = load(tokenizer)
    size = loaded.get_vocab_size(with_added_tokens=True)
    if eos is None:
        eos = end_of_document(loaded.get_vocab(with_added_tokens=True))
    if eos is None or not 0 <= eos < size:
        raise BadInput(
            f"{tokenizer}: {'no token is known to end a document' if eos is None else f'has no token {eos}'}; "
            "give --eos, the model's eos_token_id"
        )
    return Words(digest=digest_of(_read(tokenizer)), eos=eos, vocabulary_size=size)


def encoder(tokenizer: Path, words: Words) -> Encode:
    """Turns texts into lists of token ids, without special tokens: what looks like one in a text is text."""
    loaded = load(tokenizer)
    loaded.no_truncation()
    loaded.no_padding()
    loaded.encode_special_tokens = True
    size = loaded.get_vocab_size(with_added_tokens=True)
    if size > words.vocabulary_size:
        raise BadInput(
            f"{tokenizer}: has {size} tokens, the model {words.vocabulary_size}; use the tokenizer of the model"
        )

    def encode(texts: list[str]) -> list[list[int]]:
        return [found.ids for found in loaded.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def load(tokenizer: Path) -> Any:
    """The ``tokenizer.json``. Raises BadInput if it is none."""
    from tokenizers import Tokenizer

    _read(tokenizer)
    try:
        return Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the only class that the Rust library raises
        raise BadInput(f"{tokenizer}: not a tokenizer.json: {error}") from error


def _read(tokenizer: Path) -> bytes:
    try:
        return tokenizer.read_bytes()
    except OSError as error:
        raise BadInput(f"{tokenizer}: {error.strerror}; a training job needs the tokenizer") from error
