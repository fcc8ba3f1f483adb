"""How the result of a recipe compares with mergekit's, in sentences for someone who knows mergekit (0.1.5)."""

from collections.abc import Iterable, Sequence

from consortium.merging.recipe import PLAIN_STEP, Guards, Recipe, Setting, Settings
from consortium.merging.signatures import SIGNATURES

#: mergekit has no such method.
OURS = frozenset(name for name, one in SIGNATURES.items() if one.robust) | {"norm_preserving"}

_ELSEWHERE = {
    "model_stock": "cosines are those of the deltas, however small; mergekit takes a small tensor's deltas for "
    "perpendicular and keeps the base there",
    "karcher": "where directions balance out the result is their average; mergekit returns the first model",
    "multislerp": "a tensor that nobody changed stays as it is; mergekit stops at it",
}


def differences(recipe: Recipe, inputs: Sequence[Settings] = ()) -> tuple[str, ...]:
    """What to expect of the result beside mergekit's for the same recipe; the first sentence is the verdict.

    inputs  the inputs' own settings
    """
    beyond = _beyond(recipe)
    if recipe.method in OURS:
        return (f"mergekit has no method {recipe.method}", *beyond)
    found = [_verdict(recipe, [recipe.parameters, *inputs])]
    if beyond:
        found[0] = f"but for what mergekit lacks (below): {found[0]}"
    found.append(
        f"weights and deltas are float32 here, sums float64, and the result is rounded once, to {recipe.dtype}; "
        "mergekit rounds after every step to the models' dtype, unless the recipe says `dtype: float32`"
    )
    if recipe.method in _ELSEWHERE:
        found.append(_ELSEWHERE[recipe.method])
    if recipe.method != "slerp":
        found.append("the order of the models never changes a bit here; mergekit's last bits depend on it")
    return (*found, *beyond)


def _verdict(recipe: Recipe, scopes: Sequence[Settings]) -> str:
    signature = SIGNATURES[recipe.method]
    thinned = any(_below_one(scope.get(name, ())) for scope in scopes for name in ("density", "select_topk"))
    if thinned and signature.draws:
        return (
            f"the same rule, other draws: seed {recipe.seed}, tensor and contribution decide here which elements "
            "stay, in any run; in mergekit the process's random state does"
        )
    if thinned:
        return (
            "the same but for ties: of elements as large as the smallest one kept, those first in the tensor "
            "stay here; in mergekit, whichever its sort leaves there (in bfloat16 about a percent of elements)"
        )
    return "the same up to rounding"


def _below_one(settings: Iterable[Setting]) -> bool:
    values = [setting.value for setting in settings]
    return any(min(value, default=1.0) < 1.0 if isinstance(value, tuple) else value < 1.0 for value in values)


def _beyond(recipe: Recipe) -> list[str]:
    """What of a recipe mergekit does not know."""
    found = []
    if recipe.weights == "tokens":
        found.append("weights are multiplied by the tokens that contributions were trained on")
    if recipe.guards != Guards():
        found.append("guards clip or leave out contributions before the method sees them")
    if recipe.embedding_rows:
        found.append("rows of embeddings are weighed by how often each contribution saw the token")
    if recipe.outer != PLAIN_STEP:
        found.append(f"the merged delta goes through an outer {recipe.outer.optimizer} step")
    return found
