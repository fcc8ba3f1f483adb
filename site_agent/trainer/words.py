"""Which prepared text a job reads: made by the first rank where nobody made it before."""

from collections.abc import Iterable
from pathlib import Path

from consortium.ids import Language
from site_agent.data.contents import Prepared
from site_agent.data.pool import Tell
from site_agent.data.words import encoder, words_of
from site_agent.prepared import prepare
from site_agent.trainer.folder import JobFolder, Preparation, Stopped
from site_agent.trainer.model import read_config
from site_agent.trainer.ranks import Ranks


def prepared_languages(
    folder: JobFolder,
    ranks: Ranks,
    languages: Iterable[Language],
    split_seed: int,
    model: Path,
    preparation: Preparation | None = None,
) -> dict[Language, Prepared]:
    """The site's text of each of the ``languages`` that it has any of, as tokens of the model in ``model``.

    preparation  of the first rank, while that takes its time; if it raises Stopped, all ranks do
    """
    found: dict[Language, Prepared] = {}
    is_stopped = False
    if ranks.is_first:  # it fills the cache, the others find it filled
        try:
            found = _prepared(folder, languages, split_seed, model, preparation)
        except Stopped:
            is_stopped = True
    if ranks.agree(is_stopped):
        raise Stopped
    return found if ranks.is_first else _prepared(folder, languages, split_seed, model, None)


def _prepared(
    folder: JobFolder,
    languages: Iterable[Language],
    split_seed: int,
    model: Path,
    preparation: Preparation | None,
) -> dict[Language, Prepared]:
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
                preparation.beat if preparation else None,
                _teller(preparation),
            )
    return found


def _teller(preparation: Preparation | None) -> Tell | None:
    if preparation is None:
        return None
    # the merge at the end is a step further, too: what a language's files hold is never more than its bytes
    return lambda now: preparation.tell(now.language, now.read_bytes + now.is_done)
