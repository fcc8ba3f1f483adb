"""Where our result differs, on purpose, from what mergekit 0.1.5 makes of the same recipe."""

from consortium.checking import Problem
from consortium.merging.recipe import MethodName, Recipe
from consortium.merging.recipes.merge_file import MergeFile
from consortium.merging.recipes.signatures import SIGNATURES

_SORTS: frozenset[MethodName] = frozenset({"ties", "breadcrumbs", "breadcrumbs_ties", "sce"})


def differences(merge: MergeFile) -> tuple[Problem, ...]:
    """What someone who knows mergekit should know, each with the place in the file that it is about."""
    recipe, method = merge.recipe, merge.recipe.method
    signature = SIGNATURES[method]
    found: list[Problem] = []
    if merge.dtype != "float32":
        computes = f"in {merge.dtype}" if merge.dtype else "in the models' own dtype"
        sentence = (
            f"mergekit would compute {computes}; we compute in float32 and float64 and round once, at the end, "
            "so ours is nearer to the exact result (dtype: float32 makes the two comparable)"
        )
        found.append((("dtype",), sentence))
    if signature.draws:
        if may_be(recipe, "rescale", True):
            exact = (
                "each kept element is divided by its chance of being kept"
                if "epsilon" in signature.own
                else "what is kept is divided by density"
            )
            sentence = f"rescale: {exact}, as in the paper; mergekit restores the tensor's L1 norm instead"
            found.append((("merge_method",), sentence))
        sentence = (
            "which elements are dropped is drawn anew: the same shares, other elements than mergekit's; ours depend "
            "on seed, tensor and content only, mergekit's also on PYTHONHASHSEED"
        )
        found.append((("merge_method",), sentence))
    if method in _SORTS:
        sentence = (
            "of elements that are equally large at the threshold, those with the lowest index are kept; mergekit "
            "keeps any of them. Nothing else differs"
        )
        found.append((("merge_method",), sentence))
    if merge.base is None and merge.config_from is None:
        sentence = (
            f"config and tokenizer are those of {merge.companions}, the first model; mergekit takes those of a "
            "model that changes from run to run (base_model decides it in both)"
        )
        found.append((("models",), sentence))
    return tuple(found)


def may_be(recipe: Recipe, name: str, value: bool) -> bool:
    """Whether a shared switch has a value for any tensor, as far as the recipe's own parameters say."""
    entries = recipe.parameters.get(name, ())
    default = SIGNATURES[recipe.method].shared[name].default
    settles = any(entry.filter is None for entry in entries)
    return any(entry.value is value for entry in entries) or (not settles and default is value)
