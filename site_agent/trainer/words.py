"""How a site's text becomes the tokens of a model: the campaign's tokenizer, EOS after every document."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from consortium.errors import BadInput
from consortium.ids import Language, digest_of
from site_agent.prepared import Encode, Prepared, Words, prepare
from site_agent.trainer.folder import JobFolder
from site_agent.trainer.model import read_config
from site_agent.trainer.ranks import Ranks


def prepared_languages(
    folder: JobFolder, ranks: Ranks, languages: Iterable[Language], split_seed: int, model: Path
) -> dict[Language, Prepared]:
    """The site's text of each of the ``languages`` that it has any of, as tokens of the model in ``model``."""
    if not ranks.is_first:
        ranks.wait()  # the first rank fills the cache, the others find it filled
    words = words_of(folder.tokenizer, read_config(model))
    found: dict[Language, Prepared] = {}
    for language in languages:
        sources = [source for source in folder.site.text if source.language == language]
        if sources:
            found[language] = prepare(
                sources,
                words,
                lambda: encoder(folder.tokenizer, words),
                folder.site.heldout_share,
                split_seed,
                Path(folder.site.cache),
            )
    if ranks.is_first:
        ranks.wait()
    return found


def words_of(tokenizer: Path, config: dict[str, Any]) -> Words:
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
    try:
        data = tokenizer.read_bytes()
    except OSError as error:
        raise BadInput(f"{tokenizer}: {error.strerror}; a training job needs the tokenizer") from error
    return Words(digest=digest_of(data), eos=eos, vocabulary_size=vocabulary_size)


def encoder(tokenizer: Path, words: Words) -> Encode:
    """Turns texts into lists of token ids, without special tokens: what looks like one in a text is text."""
    from tokenizers import Tokenizer

    try:
        loaded = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # the only class that the Rust library raises
        raise BadInput(f"{tokenizer}: not a tokenizer.json: {error}") from error
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
