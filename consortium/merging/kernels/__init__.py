"""Which kernels run: those in C if they were built from this source, else NumPy's. The bits are the same.

``SPRACHBUND_KERNELS`` can insist: ``portable``, ``native``, or ``auto`` (what is there).
"""

import os
from typing import Literal

from consortium.errors import BadInput
from consortium.merging.kernels.portable import BLOCK, EVERYTHING, NOTHING, UNITS, Boundary, Row, Thinning

__all__ = [
    "BLOCK",
    "CHOSEN",
    "EVERYTHING",
    "NOTHING",
    "UNITS",
    "WHY",
    "Boundary",
    "Row",
    "Thinning",
    "abs_sum",
    "apply_step",
    "count_keys",
    "decode_bf16",
    "draw32",
    "elect",
    "encode_bf16",
    "first_non_finite",
    "gram",
    "grid_add",
    "keep_random",
    "keep_ranked",
    "keep_window",
    "median",
    "scale_to",
    "sgd_step",
    "subtract_bf16",
    "sum_rows",
    "sum_rows_onto",
    "trimmed_mean",
    "variance",
]

_WISH = os.environ.get("SPRACHBUND_KERNELS", "auto")
CHOSEN: Literal["native", "portable"]
WHY: str  #: in words, for the doctor

if _WISH not in ("auto", "native", "portable"):
    raise BadInput(f"SPRACHBUND_KERNELS={_WISH}: it may be auto, native or portable; set one of them")
try:
    if _WISH == "portable":
        raise ImportError("SPRACHBUND_KERNELS=portable")
    from consortium.merging.kernels.native import (
        abs_sum,
        apply_step,
        count_keys,
        decode_bf16,
        draw32,
        elect,
        encode_bf16,
        first_non_finite,
        gram,
        grid_add,
        keep_random,
        keep_ranked,
        keep_window,
        median,
        scale_to,
        sgd_step,
        subtract_bf16,
        sum_rows,
        sum_rows_onto,
        trimmed_mean,
        variance,
    )

    CHOSEN, WHY = "native", "built from this source"
except ImportError as error:
    if _WISH == "native":
        raise BadInput(f"SPRACHBUND_KERNELS=native: {error}, or set auto") from error
    from consortium.merging.kernels.portable import (
        abs_sum,
        apply_step,
        count_keys,
        decode_bf16,
        draw32,
        elect,
        encode_bf16,
        first_non_finite,
        gram,
        grid_add,
        keep_random,
        keep_ranked,
        keep_window,
        median,
        scale_to,
        sgd_step,
        subtract_bf16,
        sum_rows,
        sum_rows_onto,
        trimmed_mean,
        variance,
    )

    CHOSEN, WHY = "portable", str(error)
