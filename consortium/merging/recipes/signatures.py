"""What every merge method takes: a base or none, how many inputs, which parameters with which values.

Parameters that mergekit has are spelt, meant and defaulted as in its release 0.1.5 (``weight`` apart, see
``plan``). Where a base is optional, a method works on deltas if there is one and on weights if not.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from consortium.errors import BadInput
from consortium.merging.recipe import MethodName

Value = bool | int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter: a switch, a whole number or a number, after the type of ``default`` (None: a number)."""

    default: Value | None = None  #: None: must be given
    least: float = -math.inf
    most: float = math.inf
    open: tuple[bool, bool] = (False, False)  #: whether the least and the most are themselves too far

    @property
    def rule(self) -> str:
        """What may be written, for messages: ``a number in [0, 1)``."""
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        if math.isinf(self.least) and math.isinf(self.most):
            return kind
        if math.isinf(self.most):
            return f"{kind} {'above' if self.open[0] else 'of at least'} {self.least:g}"
        return f"{kind} in {'[('[self.open[0]]}{self.least:g}, {self.most:g}{'])'[self.open[1]]}"

    def checked(self, value: Value) -> Value:
        """``value`` as this parameter's type. Raises BadInput with the rule."""
        if isinstance(value, bool) == isinstance(self.default, bool):
            if isinstance(value, bool):
                return value
            inside = self.least <= value <= self.most and not (
                (self.open[0] and value == self.least) or (self.open[1] and value == self.most)
            )
            if inside and math.isfinite(value):  # NaN is not inside
                if not isinstance(self.default, int):
                    return float(value)
                if value == int(value):
                    return int(value)
        raise BadInput(f"is {str(value).lower()}; write {self.rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    base: Literal["required", "optional", "ignored"]
    operand: Literal["weights", "deltas"]
    inputs_min: int = 1  #: the base is not counted
    inputs_max: int | None = None
    shared: Mapping[str, Parameter] = field(default_factory=dict)  #: one value for a tensor
    own: Mapping[str, Parameter] = field(default_factory=dict)  #: one for every input
    elects: bool = False  #: each element's sign by a vote; the divisor is of those that agree
    robust: bool = False  #: what few inputs say is dropped, be it poison or a small language
    draws: bool = False  #: uses random numbers
    paper: str

    @property
    def parameters(self) -> Mapping[str, Parameter]:
        return {**self.shared, **self.own}


_WEIGHT = {"weight": Parameter()}
_OUR_WEIGHT = {"weight": Parameter(default=1.0)}
_DENSITY = {"density": Parameter(default=1.0, least=0, most=1)}
_GAMMA = {"gamma": Parameter(default=0.01, least=0, most=1, open=(False, True))}
_EPSILON = {"epsilon": Parameter(default=0.15, least=0, most=0.5, open=(False, True))}


def _task_vectors(
    paper: str,
    *,
    normalize: bool = False,
    rescale: bool = False,
    elects: bool = False,
    draws: bool = False,
    own: Mapping[str, Parameter] | None = None,
) -> Signature:
    """One of the family that thins deltas out, adds them with or without a vote on signs, and scales."""
    return Signature(
        base="required",
        operand="deltas",
        shared={
            "normalize": Parameter(default=normalize),
            "rescale": Parameter(default=rescale),
            "lambda": Parameter(default=1.0),
        },
        own={**_WEIGHT, **_DENSITY, **(own or {})},
        elects=elects,
        draws=draws,
        paper=paper,
    )


def _robust(paper: str, inputs_min: int = 1, **shared: Parameter) -> Signature:
    return Signature(
        base="required",
        operand="deltas",
        inputs_min=inputs_min,
        shared=shared,
        own=_OUR_WEIGHT,
        robust=True,
        paper=paper,
    )


_BYZANTINE = Parameter(default=0, least=0)

SIGNATURES: Mapping[MethodName, Signature] = {
    "linear": Signature(
        base="optional",
        operand="deltas",
        shared={"normalize": Parameter(default=True)},
        own=_WEIGHT,
        paper="Wortsman et al. 2022, arXiv:2203.05482",
    ),
    "task_arithmetic": _task_vectors("Ilharco et al. 2022, arXiv:2212.04089"),
    "ties": _task_vectors("Yadav et al. 2023, arXiv:2306.01708", normalize=True, elects=True),
    "dare_linear": _task_vectors("Yu et al. 2023, arXiv:2311.03099", rescale=True, draws=True),
    "dare_ties": _task_vectors("Yu et al. 2023, arXiv:2311.03099", rescale=True, elects=True, draws=True),
    "della": _task_vectors(
        "Deep et al. 2024, arXiv:2406.11617",
        normalize=True,
        rescale=True,
        elects=True,
        draws=True,
        own=_EPSILON,
    ),
    "della_linear": _task_vectors(
        "Deep et al. 2024, arXiv:2406.11617", rescale=True, draws=True, own=_EPSILON
    ),
    "breadcrumbs": _task_vectors("Davari and Belilovsky 2023, arXiv:2312.06795", own=_GAMMA),
    "breadcrumbs_ties": _task_vectors(
        "Davari and Belilovsky 2023, arXiv:2312.06795", elects=True, own=_GAMMA
    ),
    "sce": Signature(
        base="required",
        operand="deltas",
        shared={"select_topk": Parameter(default=1.0, least=0, most=1)},
        elects=True,
        paper="Wan et al. 2024, arXiv:2408.07990",
    ),
    "model_stock": Signature(
        base="required",
        operand="deltas",
        inputs_min=2,
        shared={"filter_wise": Parameter(default=False)},
        paper="Jang et al. 2024, arXiv:2403.19522",
    ),
    "slerp": Signature(
        base="required",
        operand="weights",
        inputs_max=1,
        shared={"t": Parameter()},
        paper="Shoemake 1985, Animating rotation with quaternion curves",
    ),
    "nuslerp": Signature(
        base="optional",
        operand="deltas",
        inputs_min=2,
        inputs_max=2,
        shared={"nuslerp_row_wise": Parameter(default=False), "nuslerp_flatten": Parameter(default=True)},
        own=_WEIGHT,
        paper="Shoemake 1985; with weights as mergekit has them",
    ),
    "multislerp": Signature(
        base="optional",
        operand="deltas",
        shared={"normalize_weights": Parameter(default=True), "eps": Parameter(default=1e-8, least=0)},
        own=_WEIGHT,
        paper="Goddard 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    ),
    "karcher": Signature(
        base="ignored",
        operand="weights",
        shared={
            "max_iter": Parameter(default=10, least=0),
            "tol": Parameter(default=1e-5, least=0, open=(True, False)),
        },
        paper="Karcher 1977; arXiv:2603.04972",
    ),
    "norm_preserving": Signature(
        base="required",
        operand="deltas",
        own=_OUR_WEIGHT,
        paper="radial-directional averaging, arXiv:2604.21428",
    ),
    "coordinate_median": _robust("Yin et al. 2018, arXiv:1803.01498"),
    "trimmed_mean": _robust(
        "Yin et al. 2018, arXiv:1803.01498",
        trim=Parameter(default=0.2, least=0, most=0.5, open=(False, True)),  # of the inputs, at each side
    ),
    "krum": _robust("Blanchard et al. 2017, arXiv:1703.02757", byzantine=_BYZANTINE),
    "multi_krum": _robust(
        "Blanchard et al. 2017, arXiv:1703.02757",
        byzantine=_BYZANTINE,
        keep=Parameter(default=0, least=0),  # 0: all but the byzantine ones
    ),
    "geometric_median": _robust(
        "Pillutla et al. 2019, arXiv:1912.13445",
        nu=Parameter(default=1e-6, least=0, open=(True, False)),  # of the median norm
        iterations=Parameter(default=8, least=1),
    ),
    "centered_clipping": _robust(
        "Karimireddy et al. 2020, arXiv:2012.10333",
        tau=Parameter(default=1.0, least=0, open=(True, False)),  # of the median norm
        iterations=Parameter(default=3, least=1),
    ),
}


def members_min(method: MethodName, shared: Mapping[str, Value]) -> int:
    """How many inputs a method needs to do what it promises, with these shared parameters.

    Krum picks among neighbours and wants more than 2f + 2 (Blanchard et al., proposition 2). The median,
    the geometric median and clipping tell the few from the many only where there are three. A trimmed mean
    that trims nobody is a mean: it needs as many as make its share one whole input.
    """
    signature = SIGNATURES[method]
    if method in ("krum", "multi_krum"):
        byzantine = shared.get("byzantine", 0)
        return max(2 * int(byzantine) + 3, int(shared.get("keep", 0)))
    if method == "trimmed_mean":
        trim = shared.get("trim", 0.2)
        return math.ceil(1 / trim) if trim > 0 else 1
    return 3 if signature.robust else signature.inputs_min
