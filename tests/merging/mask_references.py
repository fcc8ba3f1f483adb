"""Which elements of a delta the sparse methods keep, as their papers have it: sorts and integers, float64.

Of equal magnitudes the lower index is kept: the engine's own rule. Nothing of ours is called.
"""

import numpy as np
import numpy.typing as npt

F64Array = npt.NDArray[np.float64]


# Random draws


def philox2x32(counter: int, key: int) -> tuple[int, int]:
    """Philox2x32-10 of a 64-bit counter and a 32-bit key (Salmon et al. 2011, "as easy as 1, 2, 3")."""
    left, right = counter & 0xFFFFFFFF, counter >> 32
    for _ in range(10):
        product = 0xD256D193 * left
        left, right = (product >> 32) ^ key ^ right, product & 0xFFFFFFFF
        key = (key + 0x9E3779B9) & 0xFFFFFFFF
    return left, right


def draw32(key: int, index: int) -> int:
    """Draw number ``index`` of the stream of a 64-bit ``key``: two draws share a block."""
    counter = (index >> 1) ^ (key >> 32 << 32)
    return philox2x32(counter, key & 0xFFFFFFFF)[index & 1]


def draws(key: int, count: int) -> F64Array:
    """The first draws as numbers in [0, 1); exact."""
    return np.array([draw32(key, index) for index in range(count)], np.float64) / 2.0**32


def _chance(share: float) -> float:
    """A probability as 32 random bits can have it."""
    return np.floor(share * 2.0**32) / 2.0**32


def by_magnitude(row: F64Array) -> npt.NDArray[np.intp]:
    """Indices from the largest magnitude to the smallest; of equals the lower index first."""
    return np.argsort(-np.abs(row.reshape(-1)), kind="stable")


def keep(row: F64Array, indices: npt.NDArray[np.intp]) -> F64Array:
    kept = np.zeros(row.size)
    kept[indices] = row.reshape(-1)[indices]
    return kept.reshape(row.shape)


def trim(row: F64Array, density: float) -> F64Array:
    """TIES: the ``density`` largest magnitudes, at least one (Yadav et al. 2023, arXiv:2306.01708)."""
    if density >= 1 or row.size == 0:
        return row
    return keep(row, by_magnitude(row)[: max(1, int(density * row.size))] if density > 0 else [])


def breadcrumbs_mask(row: F64Array, density: float, gamma: float) -> F64Array:
    """The share ``density`` that lies below the ``gamma`` largest (Davari & Belilovsky 2023, arXiv:2312.06795).

    Fewer of the largest go where the density could not be had otherwise.
    """
    if density >= 1:
        return row
    target, outliers = int(density * row.size), int(gamma * row.size)
    first = min(outliers, row.size - target)
    return keep(row, by_magnitude(row)[first : first + target])


def drop(row: F64Array, density: float, key: int, rescale: bool) -> F64Array:
    """DARE: each element stays with probability ``density``, over it (Yu et al. 2024, arXiv:2311.03099)."""
    if density >= 1 or density <= 0:
        return row if density >= 1 else np.zeros_like(row)
    kept = np.where(draws(key, row.size).reshape(row.shape) < _chance(density), row, 0.0)
    return kept / density if rescale else kept


def magnitude_drop(row: F64Array, density: float, epsilon: float, key: int, rescale: bool) -> F64Array:
    """DELLA: within each row of a matrix the chance to stay grows with rank (Deep et al. 2024, arXiv:2406.11617).

    From density - epsilon for the smallest to density + epsilon for the largest; what stays is divided by its
    chance, and kept as float32. A vector is one row.
    """
    if density >= 1 or row.size == 0:
        return row
    if density <= 0:
        return np.zeros_like(row)
    matrix = row.reshape(-1, row.shape[-1]) if row.ndim > 1 else row.reshape(1, -1)
    width = matrix.shape[1]
    random = draws(key, row.size).reshape(matrix.shape)
    kept = np.zeros_like(matrix)
    for line, (values, random_N) in enumerate(zip(matrix, random, strict=True)):
        ranks = np.empty(width)
        ranks[np.argsort(np.abs(values), kind="stable")] = np.arange(width)
        chance = (density - epsilon) + (2 * epsilon * ranks / (width - 1) if width > 1 else 0.0)
        scaled = (values / chance).astype(np.float32) if rescale else values
        kept[line] = np.where(random_N < np.floor(chance * 2.0**32) / 2.0**32, scaled, 0.0)
    return kept.reshape(row.shape)


def same_l1(row: F64Array, kept: F64Array) -> F64Array:
    """``kept``, scaled to the L1 norm of ``row``; as it is where either is next to nothing."""
    before, after = np.abs(row).sum(), np.abs(kept).sum()
    return kept if before < 1e-7 or after < 1e-7 else kept * (before / after)
