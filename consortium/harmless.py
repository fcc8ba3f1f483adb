"""How words of another party are shown so that they steer neither a terminal nor a log nor who reads them."""


def harmless(text: str, characters_max: int | None = None) -> str:
    """In one line: so many characters, and a space for each that is not for eyes (controls, reversed writing)."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:characters_max])


def harmless_json(line: str) -> str:
    """A JSON text in one line that means the same, with escapes for what is not for eyes.

    JSON escapes the first 32 characters alone; a terminal also obeys U+009B, and U+202E turns words around.
    """
    return line if line.isprintable() else "".join(map(_escaped, line))


def _escaped(letter: str) -> str:
    if letter.isprintable():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
