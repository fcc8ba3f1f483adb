"""Whether a campaign's recipe can be merged by its method, with the sites it expects, and is what was meant."""

from collections.abc import Iterator
from typing import Annotated, Any

from msgspec import Meta

from consortium.canonical import Fact
from consortium.checking import Problem, problems_of
from consortium.merging.recipe import Recipe, Setting
from consortium.merging.recipes.settings import problems_of_values
from consortium.merging.recipes.signatures import SIGNATURES, members_min
from consortium.merging.rows import WITH_EMBEDDING_ROWS
from policies.campaign import Campaign
from policies.ranges import Count, Fraction, Positive

# Ranges of facts that ``consortium`` owns, whose types say only int or float.
_OUTER = {
    "learning_rate": Positive,
    "momentum": Fraction,
    "beta1": Fraction,
    "beta2": Fraction,
    "tau": Positive,
}
_GUARDS = {"clip": Positive | None, "cosine_min": Annotated[float, Meta(ge=-1, le=1)] | None}
_EMBEDDING_ROWS = {
    "tensors": Annotated[tuple[Annotated[str, Meta(min_length=1)], ...], Meta(min_length=1)],
    "count_max": Count,
}
_RECIPE = {
    "shard_bytes": Annotated[int, Meta(ge=1 << 20)]
}  # smaller: more files than a site's filesystem likes

_PLACE = ("merge", "parameters")


def merge_problems(campaign: Campaign) -> Iterator[Problem]:
    """What keeps the rounds of a campaign from being merged."""
    recipe = campaign.merge
    signature = SIGNATURES[recipe.method]
    yield from _ranges(recipe.outer, ("merge", "outer"), _OUTER)
    yield from _ranges(recipe.guards, ("merge", "guards"), _GUARDS)
    if recipe.embedding_rows is not None:
        yield from _ranges(recipe.embedding_rows, ("merge", "embedding_rows"), _EMBEDDING_ROWS)
        if recipe.method not in WITH_EMBEDDING_ROWS:
            yield (
                ("merge", "embedding_rows"),
                f"{recipe.method} does more than average rows; remove it, or take {' or '.join(WITH_EMBEDDING_ROWS)}",
            )
    yield from _ranges(recipe, ("merge",), _RECIPE)
    yield from problems_of_values(recipe.parameters, recipe.method, _PLACE)
    for name, parameter in signature.shared.items():
        if parameter.default is None and name not in recipe.parameters:
            yield (
                _PLACE,
                f"{name!r} is missing, {recipe.method} has no default; add '{name}:' with {parameter.rule}",
            )
    if 0 in _numbers(recipe, "density"):
        yield (*_PLACE, "density"), "0 keeps nothing of a contribution; write a number above 0, at most 1"
    yield from _chances(recipe)

    expected, named = campaign.sites_expected, len(campaign.sites)
    most, least = signature.inputs_max, signature.inputs_min
    if most is not None and max(expected, named) > most:
        sentence = (
            f"{recipe.method} merges {'one contribution with the base' if most == 1 else f'{most} contributions'}, "
            f"not {max(expected, named)}; take a method for any number, such as linear or multislerp"
        )
        yield ("merge", "method"), sentence
    if least > expected:
        sentence = (
            f"{recipe.method} needs {least} contributions, sites_expected is {expected}; expect more sites"
        )
        yield ("merge", "method"), sentence
    elif least > campaign.quorum.minimum:
        sentence = f"{recipe.method} needs {least} contributions, quorum.minimum is {campaign.quorum.minimum}; raise it"
        yield ("merge", "method"), sentence


def merge_notes(campaign: Campaign) -> Iterator[Problem]:
    """What of a recipe is allowed and seldom meant."""
    recipe, languages = campaign.merge, len(campaign.languages)
    signature = SIGNATURES[recipe.method]
    if signature.robust:
        if recipe.cohorts == "all" and languages > 1:
            sentence = (
                f"with all, {recipe.method} deletes what only one site knows: a language that one site trains is an "
                "outlier to the others; languages compares only sites of the same languages"
            )
            yield ("merge", "cohorts"), sentence
        wanted = members_min(recipe.method, _shared(recipe))
        if wanted > campaign.sites_expected:
            sentence = (
                f"{recipe.method} with these parameters tells good from bad only among {wanted} contributions of a "
                f"cohort, and {campaign.sites_expected} sites are expected; take guards, or more sites"
            )
            yield ("merge", "method"), sentence
    if recipe.guards.cosine_min is not None and recipe.cohorts == "all" and languages > 1:
        sentence = (
            "with cohorts: all this leaves out sites of another language, whose deltas are unlike by nature; "
            "write cohorts: languages"
        )
        yield ("merge", "guards", "cosine_min"), sentence
    if recipe.method == "model_stock" and languages > 1:
        sentence = (
            "model_stock trusts deltas as far as they agree, and across languages they are nearly orthogonal: "
            "it gives back the base; take linear, or norm_preserving"
        )
        yield ("merge", "method"), sentence
    if recipe.method.startswith("dare") and any(value < 0.5 for value in _numbers(recipe, "density")):
        sentence = (
            "DARE was made for the small deltas of fine-tuning; those of continued training do not bear dropping "
            "more than half of them"
        )
        yield (*_PLACE, "density"), sentence


def _chances(recipe: Recipe) -> Iterator[Problem]:
    """DELLA keeps elements with chances of density - epsilon to density + epsilon."""
    parameter = SIGNATURES[recipe.method].own.get("epsilon")
    if parameter is None or any(
        one.filter for name in ("density", "epsilon") for one in _entries(recipe, name)
    ):
        return  # which density meets which epsilon is then for the plan to see
    spread = max(_numbers(recipe, "epsilon") or [float(parameter.default or 0)])
    for density in _numbers(recipe, "density"):
        if 0 < density < 1 and not (density - spread > 0 and density + spread < 1):
            sentence = (
                f"{spread:g} around density {density:g} leaves the range of chances, 0 to 1; write a number below "
                f"{min(density, 1 - density):g}"
            )
            yield (*_PLACE, "epsilon"), sentence


def _shared(recipe: Recipe) -> dict[str, bool | float]:
    """The shared parameters that hold everywhere."""
    return {
        name: entry.value
        for name in SIGNATURES[recipe.method].shared
        for entry in _entries(recipe, name)
        if entry.filter is None and not isinstance(entry.value, tuple)
    }


def _entries(recipe: Recipe, name: str) -> tuple[Setting, ...]:
    return recipe.parameters.get(name, ())


def _numbers(recipe: Recipe, name: str) -> list[float]:
    values = [entry.value for entry in _entries(recipe, name)]
    return [number for value in values for number in (value if isinstance(value, tuple) else (value,))]


def _ranges(fact: Fact, place: tuple[str, ...], kinds: dict[str, Any]) -> Iterator[Problem]:
    for key, kind in kinds.items():
        value = getattr(fact, key)
        yield from problems_of(list(value) if isinstance(value, tuple) else value, kind, (*place, key))
