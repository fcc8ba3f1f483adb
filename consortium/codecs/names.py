"""What the encodings of deltas are called. Imports nothing heavy: orders and campaign files speak of them."""

from typing import Literal, TypeGuard, get_args

EncodingName = Literal["bf16", "fp32", "int8", "int4", "topk"]
CodedName = Literal["int8", "int4", "topk"]  #: leave something unsaid, which the next delta says

DENSITY = 1 / 64  #: share of the elements that top-k keeps unless told: 64 of 4096, in 0.05 bytes an element


def is_coded(encoding: str) -> TypeGuard[CodedName]:
    """Whether a delta stored so is made with error feedback."""
    return encoding in get_args(CodedName)
