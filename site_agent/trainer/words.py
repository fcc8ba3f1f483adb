"""Which prepared text a job reads: made by the first rank where nobody made it before."""

from collections.abc import Iterable
from pathlib import Path

from consortium.ids import Language
from site_agent.data.contents import Prepared
from site_agent.data.words import encoder, words_of
from site_agent.prepared import prepare
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
