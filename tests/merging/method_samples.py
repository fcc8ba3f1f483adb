"""Settings that every merge method can be tried with: several variants each, and what each input says itself."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from consortium.merging.recipe import MethodName, Recipe, Setting, Settings
from consortium.merging.recipes.signatures import SIGNATURES, Value

#: What input k says of itself, as far as the method has such a parameter.
OWN: Mapping[str, tuple[float, ...]] = {
    "weight": (0.5, 0.3, 0.9, 0.2, 0.7),
    "density": (0.3, 0.5, 0.2, 0.65, 0.4),
    "gamma": (0.01, 0.1, 0.02, 0.05, 0.0),
    "epsilon": (0.15, 0.1, 0.05, 0.25, 0.2),
}


@dataclass(frozen=True)
class Variant:
    """A method with some parameters.

    counts  of inputs it is tried with
    shared  shared parameters; the others have their defaults
    own     instead of ``OWN``
    """

    method: MethodName
    counts: tuple[int, ...] = (1, 2, 3, 5)
    shared: Mapping[str, Value] = field(default_factory=dict)
    own: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"{name}={value}" for name, value in {**self.shared, **self.own}.items()]
        return " ".join([self.method, *parts])

    @property
    def recipe(self) -> Recipe:
        return Recipe(method=self.method, parameters=settings(self.shared), weights="uniform", seed=7)

    def shared_values(self) -> dict[str, Value]:
        """All shared parameters, as the method has them if nobody speaks of them."""
        defaults = {name: item.default for name, item in SIGNATURES[self.method].shared.items()}
        return {name: value for name, value in defaults.items() if value is not None} | dict(self.shared)

    def own_values(self, k: int) -> dict[str, float]:
        values = {**OWN, **self.own}
        return {name: values[name][k] for name in SIGNATURES[self.method].own}


def settings(values: Mapping[str, Value]) -> Settings:
    """Parameters that are the same for every tensor."""
    return {name: (Setting(value=value),) for name, value in values.items()}


_NEVER = {"weight": (0.5, -0.3, 0.9, -0.2, 0.7)}
_ALL = {"density": (1.0,) * 5}

VARIANTS: tuple[Variant, ...] = (
    Variant("linear"),
    Variant("linear", shared={"normalize": False}),
    Variant("linear", own=_NEVER),
    Variant("task_arithmetic"),
    Variant("task_arithmetic", shared={"normalize": True, "lambda": 0.7}),
    Variant("task_arithmetic", own=_NEVER),
    Variant("ties"),
    Variant("ties", shared={"normalize": False, "rescale": True, "lambda": 1.3}),
    Variant("ties", own=_NEVER),
    Variant("ties", own=_ALL),
    Variant("ties", own={"density": (0.0, 0.5, 1.0, 0.001, 0.2)}),
    Variant("dare_linear"),
    Variant("dare_linear", shared={"rescale": False, "normalize": True}),
    Variant("dare_ties"),
    Variant("dare_ties", shared={"rescale": False, "lambda": 0.4}),
    Variant("dare_ties", own={"density": (0.0, 0.5, 1.0, 0.9, 0.2)}),
    Variant("della"),
    Variant("della", shared={"rescale": False, "normalize": False}),
    Variant("della", own={"density": (0.0, 0.5, 1.0, 0.7, 0.2), "epsilon": (0.15, 0.1, 0.1, 0.1, 0.1)}),
    Variant("della_linear"),
    Variant("breadcrumbs"),
    Variant("breadcrumbs", shared={"rescale": True}),
    Variant("breadcrumbs", own={"density": (0.995, 1.0, 0.0, 0.5, 0.9), "gamma": (0.01, 0.2, 0.3, 0.6, 0.2)}),
    Variant("breadcrumbs_ties"),
    Variant("breadcrumbs_ties", shared={"normalize": True, "rescale": True}),
    Variant("sce"),
    Variant("sce", shared={"select_topk": 0.3}),
    Variant("sce", shared={"select_topk": 0.0}),
    Variant("model_stock", (2, 3, 5)),
    Variant("model_stock", (2, 3), {"filter_wise": True}),
    Variant("slerp", (1,), {"t": 0.3}),
    Variant("slerp", (1,), {"t": 1.0}),
    Variant("nuslerp", (2,)),
    Variant("nuslerp", (2,), {"nuslerp_flatten": False}),
    Variant("nuslerp", (2,), {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
    Variant("multislerp", (1, 2, 4)),
    Variant("multislerp", (3,), {"normalize_weights": False}),
    Variant("karcher", (1, 2, 4)),
    Variant("norm_preserving"),
    Variant("coordinate_median", (1, 3, 4, 5)),
    Variant("trimmed_mean", (1, 3, 5), {"trim": 0.34}),
    Variant("krum", (3, 5)),
    Variant("multi_krum", (5,), {"byzantine": 1, "keep": 2}),
    Variant("geometric_median", (3, 5)),
    Variant("centered_clipping", (3, 5)),
)
