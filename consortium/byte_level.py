"""What a tokenizer that a campaign trains consists of, and what in one that a site made does not belong there.

A ``tokenizer.json`` is a program as well as a table: normalizers rewrite text, patterns can take years to match,
added tokens swallow words. Every site runs it over all of its text. So of one that comes from a site everything is
fixed but the vocabulary and the merges of a byte-level BPE (GPT-2's: Radford et al. 2019).
"""

from collections.abc import Mapping
from typing import Any

END_OF_TEXT = "<|endoftext|>"  #: begins and ends a document
PADDING = "<|pad|>"
SPECIALS = (END_OF_TEXT, PADDING)  #: the first two of the vocabulary
_TOKEN_CHARACTERS_MAX = 1000
_SHOWN = 80


def _alphabet() -> tuple[str, ...]:
    """A letter for each byte: itself where it can be seen, else one from U+0100 on; sorted."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in seen]
    return tuple(sorted([*map(chr, seen), *(chr(0x100 + index) for index in range(len(others)))]))


ALPHABET = _alphabet()
#: Of every tokenizer, less vocabulary and merges; what else a release of ``tokenizers`` writes has to be off.
_FIXED: Mapping[str, Any] = {
    "normalizer": None,
    "truncation": None,
    "padding": None,
    "added_tokens": [
        {
            "id": number,
            "content": word,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, word in enumerate(SPECIALS)
    ],
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "post_processor": {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
}


def tokenizer_of(words: list[str], merges: list[list[str]]) -> dict[str, Any]:
    """The ``tokenizer.json`` of a vocabulary: marks, bytes, ``words``. For who trains nothing."""
    vocabulary = [*SPECIALS, *ALPHABET, *words]
    model = {
        "type": "BPE",
        "vocab": {word: number for number, word in enumerate(vocabulary)},
        "merges": merges,
    }
    return {**_FIXED, "version": "1.0", "model": model}


def misfit(document: Any, vocabulary_max: int) -> str:
    """What of a ``tokenizer.json`` is not as a campaign's trainer makes it, in a sentence; "" if nothing is."""
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        return "not a tokenizer: it has no model"
    for name, value in sorted(document.items()):
        if name not in ("model", "version") and value != _FIXED.get(name):
            return f"its {_shown(name)} is {_shown(value)}, a campaign's tokenizer has {_shown(_FIXED.get(name))}"
    if missing := sorted(_FIXED.keys() - document.keys()):
        return f"it has no {missing[0]}"
    return _misfit_of_model(document["model"], vocabulary_max)


def _misfit_of_model(model: dict[str, Any], vocabulary_max: int) -> str:
    for name, value in sorted(model.items()):
        if name not in ("type", "vocab", "merges") and value not in (None, False):
            return f"its model's {_shown(name)} is {_shown(value)}; only a plain BPE is taken"
    words, merges = model.get("vocab"), model.get("merges")
    if model.get("type") != "BPE" or not isinstance(words, dict) or not isinstance(merges, list):
        return f"not a tokenizer of a vocabulary and merges, but {_shown(model.get('type'))}"
    least = len(SPECIALS) + len(ALPHABET)
    if not least <= len(words) <= vocabulary_max:
        return f"BPE of {len(words)} entries, asked for {least} to {vocabulary_max}"
    numbers = list(words.values())
    if any(type(number) is not int for number in numbers) or sorted(numbers) != list(range(len(numbers))):
        return "its vocabulary does not count from 0 on"
    if any(words.get(word) != number for number, word in enumerate(SPECIALS)):
        return f"its vocabulary does not begin with {', '.join(SPECIALS)}"
    if lost := [letter for letter in ALPHABET if letter not in words]:
        return f"{len(lost)} of 256 bytes are not in its vocabulary, and would vanish from texts"
    letters = set(ALPHABET)
    for word in words:
        if word not in SPECIALS and (len(word) > _TOKEN_CHARACTERS_MAX or not letters.issuperset(word)):
            return f"its entry {_shown(word)} is not of bytes, or has more than {_TOKEN_CHARACTERS_MAX}"
    return _misfit_of_merges(merges, words)


def _misfit_of_merges(merges: list[Any], words: dict[str, int]) -> str:
    if len(merges) > len(words):
        return f"{len(merges)} merges for {len(words)} entries"
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge  # older releases write "a b"
        if not isinstance(pair, list) or len(pair) != 2 or any(not isinstance(one, str) for one in pair):
            return f"its merge {_shown(merge)} is not of two entries"
        if any(one not in words or one in SPECIALS for one in (*pair, "".join(pair))):
            return f"its merge {_shown(merge)} is not of its vocabulary"
    return ""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
