"""In what a model's quality is measured: bits per byte, which no tokenizer can flatter."""

import math

from consortium.errors import BadInput


def bits_per_byte(nats: float, num_bytes: int) -> float:
    """Cross-entropy of a text in bits per UTF-8 byte: ``nats / ln 2 / num_bytes``.

    nats       natural-log loss summed over the tokens of the text, not averaged
    num_bytes  UTF-8 length of the same text, at least 1
    Compare models and tokenizers on one text; not languages, whose letters take one to three bytes.
    """
    if num_bytes < 1:
        raise BadInput(f"bits per byte of {num_bytes} bytes: the text is empty; score at least one document")
    return nats / math.log(2.0) / num_bytes
