"""What a site holds of each language: counts and digests, remembered until a file changes."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from consortium.errors import Unavailable
from consortium.ids import Language, SiteName
from consortium.manifests import DataManifest
from site_agent.config import Text
from site_agent.data.contents import Plan, Survey, plan_of, remembered_surveys
from site_agent.data.pool import Tell, work_through
from site_agent.data.segments import Split


def describe(
    site: SiteName, sources: Iterable[Text], heldout_share: float, split_seed: int, cache: Path
) -> DataManifest:
    """The manifest of all the text a site has. Fast when no file changed since the last time.

    cache  folder that remembers surveys, by path, size and time of change of every file
    Raises BadInput or Corrupt naming the source that cannot be read.
    """
    surveys = surveys_of(sources, Split(heldout_share=heldout_share, seed=split_seed), cache)
    return DataManifest(site=site, holdings=tuple(survey.holding for survey in surveys))


def surveys_of(
    sources: Iterable[Text], split: Split, cache: Path, processes: int = 1, tell: Tell | None = None
) -> tuple[Survey, ...]:
    """One survey for every (language, access) there is, sorted by it; text that is not known yet is read."""
    plans = [plan_of(group, None, split, cache) for group in by_language(sources).values()]
    missing = [plan for plan in plans if remembered_surveys(plan) is None]
    if missing:
        try:
            work_through(missing, processes, tell=tell)
        except Unavailable:
            if any(remembered_surveys(plan) is None for plan in missing):  # nobody else was faster
                raise
    return tuple(survey for plan in plans for survey in _known(plan))


def by_language(sources: Iterable[Text]) -> dict[Language, list[Text]]:
    """The sources of each language, sorted by it."""
    groups: dict[Language, list[Text]] = {}
    for source in sources:
        groups.setdefault(source.language, []).append(source)
    return {language: groups[language] for language in sorted(groups)}


def _known(plan: Plan) -> Sequence[Survey]:
    found = remembered_surveys(plan)
    if found is None:
        raise Unavailable(
            f"the {plan.language} text changed while it was read; let it come to rest, try again"
        )
    return found
