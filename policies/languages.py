"""Which languages the consortium trains, and which of them a data set's tag means."""

import re
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field

from consortium import ids
from consortium.canonical import Fact
from consortium.checking import Place, nearest, shown
from consortium.errors import BadInput
from consortium.loading import Problems, read

DEFAULT = Path(__file__).parent / "languages.yaml"

_SCRIPT = re.compile(r"[A-Za-z]{4}")
_REGION = re.compile(r"[A-Za-z]{2}|[0-9]{3}")
_GETTEXT_SCRIPTS = {"latin": "Latn", "cyrillic": "Cyrl"}  # sr@latin


class Language(Fact):
    code: ids.Language
    english: str
    own: str  #: its name in itself
    scripts: tuple[Annotated[str, Meta(pattern="^[A-Z][a-z]{3}$")], ...]  #: ISO 15924, the usual one first
    tier: Literal["official", "candidate", "associated"]
    aliases: tuple[str, ...] = ()  #: what data sets call it, without script and region


class Languages(Fact):
    languages: tuple[Language, ...]
    #: tags that could be several of ours
    ambiguous: dict[str, tuple[ids.Language, ...]] = field(default_factory=dict)

    @property
    def codes(self) -> tuple[ids.Language, ...]:
        return tuple(sorted(language.code for language in self.languages))

    def find(self, code: ids.Language) -> Language:
        """The language of that code. Raises BadInput for any other tag, an alias too."""
        for language in self.languages:
            if language.code == code:
                return language
        raise BadInput(f"{shown(code)} is not a language of this consortium; {nearest(code, self.codes)}")

    def normalise(self, tag: str) -> ids.Language:
        """The code for a data set's tag: ``ekk_Latn`` -> ``et``, ``nb-NO`` -> ``no``, ``sr@latin`` -> ``sr``.

        The region is dropped; the script must be one that the language is written in, so that text which was
        romanised by a crawler's accident (``ell_Latn``) is not taken for Greek. Raises BadInput.
        """
        locale, _, modifier = tag.partition("@")
        word, *subtags = locale.replace("_", "-").split("-")
        word = word.lower()
        if word in self.ambiguous:
            choices = ", ".join(sorted(self.ambiguous[word]))
            raise BadInput(f"{shown(tag)} could be several languages; write the one it is: {choices}")
        language = next((one for one in self.languages if word == one.code or word in one.aliases), None)
        if language is None:
            raise BadInput(f"{shown(tag)} is not a language of this consortium; {nearest(word, self.codes)}")
        if modifier:
            subtags.append(_GETTEXT_SCRIPTS.get(modifier.lower(), modifier))
        for subtag in subtags:
            if _SCRIPT.fullmatch(subtag):
                if subtag.title() not in language.scripts:
                    scripts = " or ".join(language.scripts)
                    raise BadInput(
                        f"{shown(tag)}: {language.english} is written in {scripts}; use text in that"
                    )
            elif not _REGION.fullmatch(subtag):
                raise BadInput(
                    f"{shown(tag)}: subtag {shown(subtag)} means nothing to us; write {language.code!r}"
                )
        return language.code


def load_languages(path: str | Path = DEFAULT) -> Languages:
    """The languages in a YAML file, ours if none is given. Raises BadInput, also where two claim one tag."""
    document = read(path)
    languages = document.convert(Languages)
    problems = Problems(document)
    taken: dict[str, str] = {tag: "ambiguous" for tag in languages.ambiguous}
    for index, language in enumerate(languages.languages):
        for word in (language.code, *language.aliases):
            if word in taken:
                problems.add(("languages", index), f"tag {word!r} is taken by {taken[word]!r}; use each once")
            taken[word] = language.code
    for tag, choices in sorted(languages.ambiguous.items()):
        for code in choices:
            if taken.get(code) != code:
                problems.add(
                    ("ambiguous", tag), f"{code!r} is not the code of a language above; write one that is"
                )
    problems.raise_if_any()
    return languages


def normalise_all(
    tags: tuple[ids.Language, ...], place: Place, problems: Problems, languages: Languages | None = None
) -> tuple[ids.Language, ...]:
    """The sorted codes for the tags that stand in a list at ``place``; notes unknown and repeated ones."""
    known = languages or load_languages()
    codes: dict[ids.Language, str] = {}
    for index, tag in enumerate(tags):
        code = problems.attempt((*place, index), known.normalise, tag)
        if code is None:
            continue
        if code in codes:
            problems.add(
                (*place, index), f"{shown(tag)} is {code!r} again, as {shown(codes[code])} was; keep one"
            )
        codes[code] = tag
    return tuple(sorted(codes))
