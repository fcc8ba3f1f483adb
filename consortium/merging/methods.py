"""Which merge methods there are, and what each does to a tensor. To add one: a row here, one in SIGNATURES.

A method is prepared once for every tensor (it may ask the survey: dot products, boundaries, sums) and gives
back what to do with a chunk: K rows of N elements in, one merged row out. It must give the same bits for any
split into chunks and any order of the rows, so it adds on the grid (``exact``), selects exactly
(``selection``), and draws by key and position (``randomness``). Papers and parameters: ``signatures``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from consortium.merging import kernels
from consortium.merging.exact import (
    GRID,
    F64Array,
    Factors,
    exact_factors,
    require_range,
    unit_bits,
    weighted_sum,
)
from consortium.merging.geometry import shrinking, spherical
from consortium.merging.geometry.robust import COHORT_MIN
from consortium.merging.kernels import EVERYTHING, NOTHING, Boundary, Thinning
from consortium.merging.plan import TensorPlan
from consortium.merging.randomness import key_of
from consortium.merging.recipe import MethodName
from consortium.merging.survey import Survey, mask_variance
from consortium.tensors import F32Array

#: (rows_KN, position of the first element, out_N): fills out_N, and returns what it is yet to be multiplied
#: by; the rows are its to overwrite
MergeChunk = Callable[[F32Array, int, F64Array], float]


@dataclass(frozen=True, slots=True)
class Subject:
    """One tensor to be merged, and what the recipe says of it."""

    plan: TensorPlan
    survey: Survey
    weights: tuple[Fraction, ...]  #: of the rows; exact
    keys: tuple[str, ...]  #: of the rows' inputs; equal content, equal key
    cohorts: tuple[tuple[int, ...], ...]  #: rows that are compared with each other
    seed: int
    coefficients: tuple[float, ...] | None  #: of the rows, where they were decided over the whole model

    @property
    def num_columns(self) -> int:
        """Length of a line: the last axis, or the whole tensor if it has one axis only."""
        return self.plan.shape[-1] if self.plan.shape else 1

    @property
    def divisor(self) -> Fraction | None:
        """What sums are divided by, if by anything. Where nobody weighs anything, nothing is added."""
        return sum(self.weights, Fraction()) if self.plan.shared["normalize"] and any(self.weights) else None


Prepare = Callable[[Subject], MergeChunk]


# --- sums ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """A merge that only adds, so that nobody needs to hold all rows at once."""

    factors: Factors

    def __call__(self, rows_KN: F32Array, start: int, out_N: F64Array) -> float:
        return weighted_sum(rows_KN, self.factors, out_N)


def average(s: Subject) -> MergeChunk:
    """sum_k w_k x_k, over sum_k w_k if ``normalize``."""
    return WeightedSum(exact_factors(s.weights, s.divisor))


def combination(coefficients: Sequence[float] | F64Array) -> MergeChunk:
    """sum_k c_k x_k."""
    return WeightedSum(exact_factors([float(one) for one in coefficients], None))


def decided(s: Subject) -> MergeChunk:
    """The combination that was decided over the whole model (Krum, geometric median, centred clipping)."""
    assert s.coefficients is not None
    return combination(s.coefficients)


# --- task arithmetic and its kin: thin out each delta, elect a sign or not, add ----------------------------


@dataclass(frozen=True, slots=True)
class Thinned:
    """How the rows are thinned out, and by how much each is to be scaled up for it."""

    thin: Callable[[F32Array, int], None]  #: (rows_KN, start), in place
    scales: tuple[float, ...]
    kernels: tuple[Thinning, ...] | None = None  #: the same in words that kernels on files know


def _as_they_are(s: Subject) -> Thinned:
    return Thinned(lambda rows_KN, start: None, (1.0,) * len(s.keys))


def _largest(s: Subject) -> Thinned:
    """Keep the floor(density * n) largest, at least one; of equals those of the lowest index."""
    count = s.survey.reader.num_elements
    kept = [
        count if d >= 1 else min(count, max(1, int(d * count))) if d > 0 else 0 for d in _own(s, "density")
    ]
    tops = [top for (top,) in s.survey.tops([[k] for k in kept])]
    return _windows(s, tops, [NOTHING] * len(kept))


def _middling(s: Subject) -> Thinned:
    """Drop the floor(gamma * n) largest, then keep floor(density * n), fewer dropped where they do not fit."""
    count = s.survey.reader.num_elements
    counts = []
    for density, gamma in zip(_own(s, "density"), _own(s, "gamma"), strict=True):
        kept = count if density >= 1 else int(density * count)
        dropped = min(int(gamma * count), count - kept)
        counts.append((dropped + kept, dropped))
    bounds = s.survey.tops(counts)
    return _windows(s, [top for top, _ in bounds], [but for _, but in bounds])


def _windows(s: Subject, tops: list[Boundary], without: list[Boundary]) -> Thinned:
    def thin(rows_KN: F32Array, start: int) -> None:
        for row_N, top, but in zip(rows_KN, tops, without, strict=True):
            if (top, but) != (EVERYTHING, NOTHING):
                kernels.keep_window(row_N, start, top, but)

    rescale = bool(s.plan.shared.get("rescale"))
    scales = tuple(s.survey.kept_shares(tops, without)) if rescale else (1.0,) * len(tops)
    return Thinned(thin, scales, tuple(Thinning(window=pair) for pair in zip(tops, without, strict=True)))


def _drawn(s: Subject) -> Thinned:
    """Keep each element with probability ``density``, scaled by 1/density if ``rescale``."""
    densities = _own(s, "density")
    row_keys = _draw_keys(s)

    def thin(rows_KN: F32Array, start: int) -> None:
        for row_N, key, density in zip(rows_KN, row_keys, densities, strict=True):
            if density < 1:
                kernels.keep_random(row_N, start, key, density)

    rescale = s.plan.shared.get("rescale")
    scales = tuple(1 / d if rescale and 0 < d < 1 else 1.0 for d in densities)
    return Thinned(thin, scales, tuple(Thinning(draw=pair) for pair in zip(row_keys, densities, strict=True)))


def _ranked(s: Subject) -> Thinned:
    """Keep each element with a probability that grows with its rank within its line, scaled by its inverse."""
    settings = list(zip(_draw_keys(s), _own(s, "density"), _own(s, "epsilon"), strict=True))
    rescale, width = bool(s.plan.shared.get("rescale")), s.num_columns

    def thin(rows_KN: F32Array, start: int) -> None:
        for row_N, (key, density, epsilon) in zip(rows_KN, settings, strict=True):
            if density <= 0:
                row_N.fill(0.0)
            elif density < 1:
                lines_RC = row_N.reshape(-1, width)
                kernels.keep_ranked(lines_RC, start // width, key, density, epsilon, rescale)

    return Thinned(thin, (1.0,) * len(settings))


def _task_arithmetic(sparsify: Callable[[Subject], Thinned], elect: bool) -> Prepare:
    """lambda * sum_k w_k thin(x_k), over the sum of the weights (of those that agree, if elected)."""

    def prepare(s: Subject) -> MergeChunk:
        thinned = sparsify(s)
        factors_K = [w * Fraction(scale) for w, scale in zip(s.weights, thinned.scales, strict=True)]
        strength = Fraction(s.plan.shared["lambda"])
        if elect:
            return _elected(thinned, factors_K, s.weights, bool(s.plan.shared["normalize"]), strength)
        add = WeightedSum(exact_factors([strength * factor for factor in factors_K], s.divisor))

        def merge(rows_KN: F32Array, start: int, out_N: F64Array) -> float:
            thinned.thin(rows_KN, start)
            return add(rows_KN, start, out_N)

        return add if sparsify is _as_they_are else merge

    return prepare


@dataclass(frozen=True, slots=True)
class Elected:
    """Only elements with the sign of their sum count; of the sum, and of the weights that divide it."""

    thinned: Thinned
    factors_K: F64Array
    weights_K: F64Array
    normalize: bool
    scale: float

    def __call__(self, rows_KN: F32Array, start: int, out_N: F64Array) -> float:
        self.thinned.thin(rows_KN, start)
        self.require(kernels.elect(rows_KN, self.factors_K, self.weights_K, out_N, self.normalize))
        return self.scale

    def require(self, peak: float) -> None:
        """Refuse sums that may have left the exact range; ``peak`` is the largest size of any element."""
        require_range(peak, float(max(abs(self.factors_K), default=0.0)), len(self.factors_K), 0)


def _elected(
    thinned: Thinned,
    factors_K: Sequence[Fraction],
    weights_K: Sequence[Fraction],
    normalize: bool,
    strength: Fraction,
) -> MergeChunk:
    unit = Fraction(2) ** unit_bits([*factors_K, *weights_K])
    return Elected(
        thinned,
        np.array([float(factor / unit) for factor in factors_K]),
        np.array([float(weight / unit) for weight in weights_K]),
        normalize,
        float(strength if normalize else strength * unit),
    )


@dataclass(frozen=True, slots=True)
class Median:
    """The median of each coordinate, of one cohort."""

    def __call__(self, rows_KN: F32Array, start: int, out_N: F64Array) -> float:
        kernels.median(rows_KN, out_N)
        return 1.0


# --- SCE: select, calculate, erase -------------------------------------------------------------------


def sce(s: Subject) -> MergeChunk:
    """Keep the elements that differ most between inputs; weigh inputs by energy; erase minority signs."""
    share, top = float(s.plan.shared["select_topk"]), None
    if share < 1:
        count = int(s.survey.count_varying() * share) if share > 0 else 0
        top = s.survey.variance_top(count) if count else NOTHING
    means_K = [energy / max(s.survey.reader.num_elements, 1) for energy in s.survey.energies(top)]
    total = sum(map(Fraction, means_K))
    shares_K = [float(Fraction(m) / total) if total >= 1e-6 else 1 / len(means_K) for m in means_K]

    def merge(rows_KN: F32Array, start: int, out_N: F64Array) -> float:
        if top is not None:
            mask_variance(rows_KN, start, top)
        out_N.fill(0.0)
        for row, row_N in enumerate(rows_KN):
            require_range(kernels.grid_add(out_N, row_N, 1 / GRID), 1.0, len(rows_KN), row)
        positive_N = out_N >= 0
        divisor_N = np.zeros_like(out_N)
        out_N.fill(0.0)
        for row_N, share in zip(rows_KN, shares_K, strict=True):
            agrees_N = np.where(positive_N, row_N > 0, row_N < 0)
            row_N *= agrees_N
            kernels.grid_add(out_N, row_N, share / GRID)
            divisor_N += agrees_N * np.rint(share / GRID)
        out_N /= np.maximum(divisor_N, 1e-6 / GRID)
        return 1.0

    return merge


# --- geometry: coefficients from dot products ----------------------------------------------------------


def slerp(s: Subject) -> MergeChunk:
    """The point at ``t`` on the great circle from the base (row 0) to the other."""
    return combination(spherical.slerp(s.survey.gram(), float(s.plan.shared["t"])))


def nuslerp(s: Subject) -> MergeChunk:
    """Slerp of two by their weights: of whole tensors, of lines (not flattened), or of columns (row-wise)."""
    weights = [float(weight) for weight in s.weights]
    if s.plan.shared["nuslerp_flatten"] or len(s.plan.shape) < 2 or 0 in s.plan.shape:
        return combination(spherical.nuslerp(s.survey.gram(), weights))
    if s.plan.shared["nuslerp_row_wise"]:  # along the first axis, whatever the others
        grams = s.survey.column_grams(math.prod(s.plan.shape[1:]))
        return _by_column(np.array([spherical.nuslerp(gram_KK, weights) for gram_KK in grams]).T)
    grams = s.survey.line_grams(s.num_columns)
    return by_line(np.array([spherical.nuslerp(gram_KK, weights) for gram_KK in grams]).T, s.num_columns)


def multislerp(s: Subject) -> MergeChunk:
    """Barycentre in the tangent space at the weighted mean direction."""
    shared = s.plan.shared
    weights = [float(weight) for weight in s.weights]
    normalize, eps = bool(shared["normalize_weights"]), float(shared["eps"])
    return combination(spherical.multislerp(s.survey.gram(), weights, normalize, eps))


def karcher(s: Subject) -> MergeChunk:
    """The mean on the sphere, by iteration."""
    iterations, tolerance = int(s.plan.shared["max_iter"]), float(s.plan.shared["tol"])
    return combination(spherical.karcher(s.survey.gram(), max_iter=iterations, tol=tolerance))


def model_stock(s: Subject) -> MergeChunk:
    """As far from the base as the deltas agree in direction."""
    if not s.plan.shared["filter_wise"] or len(s.plan.shape) < 2 or 0 in s.plan.shape:
        return combination(shrinking.model_stock(s.survey.gram()))
    grams = s.survey.line_grams(s.num_columns)
    return by_line(np.array([shrinking.model_stock(gram_KK) for gram_KK in grams]).T, s.num_columns)


def norm_preserving(s: Subject) -> MergeChunk:
    """The mean direction at the mean length."""
    return combination(shrinking.norm_preserving(s.survey.gram(), [float(weight) for weight in s.weights]))


def by_line(coefficients_KR: F64Array, width: int) -> MergeChunk:
    def spread(start: int, size: int) -> F64Array:
        return coefficients_KR[:, np.arange(start, start + size) // width]

    return _spread(spread)


def _by_column(coefficients_KC: F64Array) -> MergeChunk:
    def spread(start: int, size: int) -> F64Array:
        return coefficients_KC[:, np.arange(start, start + size) % coefficients_KC.shape[1]]

    return _spread(spread)


def _spread(coefficients_at: Callable[[int, int], F64Array]) -> MergeChunk:
    """sum_k c_kn x_kn with a coefficient for every element, on the grid."""

    def merge(rows_KN: F32Array, start: int, out_N: F64Array) -> float:
        coefficients_KN = coefficients_at(start, out_N.size)
        out_N.fill(0.0)
        for row, (row_N, coefficient_N) in enumerate(zip(rows_KN, coefficients_KN, strict=True)):
            addend_N = row_N * coefficient_N
            require_range(float(np.max(np.abs(addend_N), initial=0.0)), 1.0, len(rows_KN), row)
            out_N += np.rint(addend_N / GRID)
        return GRID

    return merge


# --- robust, element by element -----------------------------------------------------------------------


def _robust(
    of_cohort: Callable[[F32Array, F64Array, float], None],
    setting: str | None,
    alone: MergeChunk | None = None,
) -> Prepare:
    """``of_cohort`` within every cohort, then the average of cohorts, each weighing what its members weigh.

    alone  what it comes to where there is one cohort, in words that kernels on files know
    """

    def prepare(s: Subject) -> MergeChunk:
        if alone is not None and len(s.cohorts) == 1 and len(s.keys) >= COHORT_MIN:
            return alone
        factors = exact_factors([sum(s.weights[k] for k in cohort) for cohort in s.cohorts], sum(s.weights))
        value = float(s.plan.shared[setting]) if setting else 0.0

        def one(cohort: tuple[int, ...], rows_KN: F32Array, out_N: F64Array) -> float:
            if len(cohort) >= COHORT_MIN:
                of_cohort(rows_KN, out_N, value)
                return 1.0
            weights = [s.weights[k] for k in cohort]  # nobody can say which of two is wrong
            return weighted_sum(rows_KN, exact_factors(weights, sum(weights)), out_N)

        def merge(rows_KN: F32Array, start: int, out_N: F64Array) -> float:
            if len(s.cohorts) == 1:
                return one(s.cohorts[0], rows_KN, out_N)
            total_N = np.zeros_like(out_N)
            for row, (cohort, factor) in enumerate(zip(s.cohorts, factors.per_row, strict=True)):
                out_N *= one(cohort, np.ascontiguousarray(rows_KN[list(cohort)]), out_N)
                require_range(float(np.max(np.abs(out_N), initial=0.0)), factor, len(s.cohorts), row)
                total_N += np.rint(out_N * (factor / GRID))
            out_N[:] = total_N
            return GRID * factors.scale

        return merge

    return prepare


def _median(rows_KN: F32Array, out_N: F64Array, _: float) -> None:
    kernels.median(rows_KN, out_N)


def _trimmed(rows_KN: F32Array, out_N: F64Array, share: float) -> None:
    most = (len(rows_KN) - 1) // 2
    kernels.trimmed_mean(rows_KN, min(int(share * len(rows_KN)), most), out_N)


# --- the table ----------------------------------------------------------------------------------------

METHODS: Mapping[MethodName, Prepare] = {
    "linear": average,
    "task_arithmetic": _task_arithmetic(_as_they_are, elect=False),
    "ties": _task_arithmetic(_largest, elect=True),
    "dare_linear": _task_arithmetic(_drawn, elect=False),
    "dare_ties": _task_arithmetic(_drawn, elect=True),
    "della_linear": _task_arithmetic(_ranked, elect=False),
    "della": _task_arithmetic(_ranked, elect=True),
    "breadcrumbs": _task_arithmetic(_middling, elect=False),
    "breadcrumbs_ties": _task_arithmetic(_middling, elect=True),
    "sce": sce,
    "slerp": slerp,
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "norm_preserving": norm_preserving,
    "coordinate_median": _robust(_median, None, alone=Median()),
    "trimmed_mean": _robust(_trimmed, "trim"),
    "krum": decided,
    "multi_krum": decided,
    "geometric_median": decided,
    "centered_clipping": decided,
}

WHOLE_LINES = frozenset({"della", "della_linear"})  #: chunks must hold whole lines


def _own(s: Subject, name: str) -> list[float]:
    return [float(own[name]) for own in s.plan.own]


def _draw_keys(s: Subject) -> list[int]:
    return [key_of(s.seed, s.plan.name, key) for key in s.keys]
