"""How a picture of ours is written as SVG: numbers, words, and how much room words take."""

from html import escape

from console.screens.parts import plain

_NARROW, _WIDE = frozenset("ijlftr.,:;'|!()[] -"), frozenset("mwMW@%—…")


def number(value: float) -> str:
    """A coordinate: a tenth of a pixel is as fine as anybody sees, and keeps pictures small and the same."""
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # a rounded -0.01 is 0, not -0


def safe(words: str) -> str:
    """Words of another party, harmless in XML and to a terminal."""
    return escape(plain(words))


def text(x: float, y: float, words: str, kind: str = "") -> str:
    look = f' class="{kind}"' if kind else ""
    return f'<text x="{number(x)}" y="{number(y)}"{look}>{safe(words)}</text>'


def width_of(words: str, size: float) -> float:
    """Pixels that words take at most, in any sans-serif font of that size that readers are likely to have."""
    return size * sum(
        0.38 if letter in _NARROW else 0.98 if letter in _WIDE else 0.78 if letter.isupper() else 0.64
        for letter in words
    )


def shortened(words: str, room: float, size: float) -> str:
    """The words, or as many letters of them as there is room for, and three dots."""
    if width_of(words, size) <= room:
        return words
    while words and width_of(words + "…", size) > room:
        words = words[:-1]
    return words + "…" if words else ""
