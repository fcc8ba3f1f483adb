"""The models and slices of a recipe file, and the parameters that stand with them."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from consortium.checking import Place, nearest, problems_of, shown
from consortium.errors import BadInput
from consortium.loading import Problems
from consortium.merging.layers import BASE, Layout, OutputSlice, SliceSource
from consortium.merging.recipe import MethodName, Setting, Settings
from consortium.merging.recipes.settings import checked, typed, written_out
from consortium.merging.recipes.signatures import SIGNATURES


@dataclass(frozen=True, slots=True)
class Part:
    """A model where it stands in the file."""

    name: str
    settings: Settings
    place: Place
    start: int = 0  #: of its layers in a slice
    stop: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice; or all of the models, which have no ranges of layers."""

    place: Place
    parts: list[Part] = field(default_factory=list)
    settings: Settings = field(default_factory=dict)
    base: str | None = None

    def add(self, name: str) -> None:
        self.parts.append(Part(name, {}, self.place))


class Parts:
    """Reads them, and collects what is wrong (``problems``) and what has no effect (``notes``)."""

    def __init__(self, method: MethodName, problems: Problems, notes: list[tuple[Place, str]]) -> None:
        self._method, self._problems, self._notes = method, problems, notes

    def models(self, entries: list[dict[str, Any]], place: Place) -> Piece:
        piece = Piece(place)
        for number, entry in enumerate(entries):
            piece.parts.append(self._part(entry, (*place, number), piece, ("model", "parameters")))
        return piece

    def slice(self, plain: dict[str, Any], place: Place) -> Piece:
        base = plain.get("base_model")
        piece = Piece(
            place,
            settings=self.settings(plain.get("parameters"), (*place, "parameters")),
            base=None if base is None else self.model_name(base, (*place, "base_model")),
        )
        self._heed(plain, place, ("sources", "base_model", "parameters"))
        sources = plain.get("sources")
        if not isinstance(sources, list) or not sources or not all(isinstance(one, dict) for one in sources):
            sentence = f"{shown(sources)} does not fit; write a list of model: and layer_range:"
            self._problems.add((*place, "sources"), sentence)
            return piece
        for number, source in enumerate(sources):
            inner = (*place, "sources", number)
            part = self._part(source, inner, piece, ("model", "layer_range", "parameters"))
            start, stop = self._range(source.get("layer_range"), (*inner, "layer_range"))
            piece.parts.append(Part(part.name, part.settings, part.place, start, stop))
        lengths = [part.stop - part.start for part in piece.parts]
        if len(set(lengths)) > 1:
            sentence = f"its sources have {', '.join(map(str, lengths))} layers; give each as many"
            self._problems.add((*place, "sources"), sentence)
        return piece

    def settings(self, value: Any, place: Place, own: bool = False) -> Settings:
        """``parameters:``; ``own`` are those of an input, where shared ones have no effect."""
        signature, found = SIGNATURES[self._method], Settings()
        if value is None:
            return found
        if not isinstance(value, dict):
            self._problems.add(place, f"{shown(value)} does not fit; write 'name: value' pairs")
            return found
        known = signature.own if own else signature.parameters
        for name, entries in written_out(value).items():
            inner = (*place, name)
            if name in known:
                plain = [typed(entry, known[name]) for entry in entries]
                short = plain != value[name] and not isinstance(value[name], list)
                wrong = [*problems_of(plain, tuple[Setting, ...])]
                for where, sentence in wrong:
                    self._problems.add(inner if short else (*inner, *where), sentence)
                if not wrong:
                    found[name] = self._checked(msgspec.convert(plain, tuple[Setting, ...]), name, inner)
            elif name == "int8_mask":
                self._notes.append((inner, "has no effect here: signs are elected without a mask in memory"))
            elif name in signature.shared:
                self._notes.append((inner, f"is for all of {self._method}; here ignored, as in mergekit"))
            else:
                sentence = f"{self._method} has no such parameter; ignored, as in mergekit"
                self._notes.append((inner, f"{sentence}; {nearest(name, known)}" if known else sentence))
        return found

    def model_name(self, value: Any, place: Place) -> str:
        """A model as mergekit's users name it: text, or ``{model: {path, revision}}``."""
        if isinstance(value, dict):
            if set(value) - {"model"}:
                extra = ", ".join(sorted(set(value) - {"model"}))
                self._problems.add(place, f"{extra}: we merge whole models; merge adapters into theirs first")
                return ""
            value = value.get("model")
            if isinstance(value, dict):
                path, revision = value.get("path"), value.get("revision")
                value = f"{path}@{revision}" if revision else path
        if not isinstance(value, str) or not value:
            self._problems.add(place, f"{shown(value)} names no model; write a folder or organisation/name")
            return ""
        if "+" in value:
            sentence = f"{shown(value)} is a model and an adapter (LoRA); merge the adapter into it first"
            self._problems.add(place, sentence)
        if value.count("@") > 1:
            self._problems.add(place, f"{shown(value)} has two '@'; write organisation/name@revision")
        return value

    def _checked(self, entries: tuple[Setting, ...], name: str, place: Place) -> tuple[Setting, ...]:
        parameter = SIGNATURES[self._method].parameters[name]
        try:
            if not entries:
                raise BadInput("nothing is set; write a value, or remove it")
            return tuple(checked(entry, parameter) for entry in entries)
        except BadInput as error:
            self._problems.add(place, str(error))
            return entries

    def _part(self, entry: dict[str, Any], place: Place, piece: Piece, keys: tuple[str, ...]) -> Part:
        self._heed(entry, place, keys)
        if "model" not in entry:
            self._problems.add(place, "'model' is missing; add 'model:' with a folder or organisation/name")
        name = self.model_name(entry["model"], (*place, "model")) if "model" in entry else ""
        if name and any(part.name == name for part in piece.parts):
            self._problems.add((*place, "model"), f"{name} stands in it twice; keep one and add its weights")
        return Part(name, self.settings(entry.get("parameters"), (*place, "parameters"), own=True), place)

    def _heed(self, plain: dict[str, Any], place: Place, keys: tuple[str, ...]) -> None:
        for key in plain:
            if key not in keys:
                self._notes.append(((*place, key), f"has no effect, as in mergekit; {nearest(key, keys)}"))

    def _range(self, value: Any, place: Place) -> tuple[int, int]:
        if isinstance(value, list) and len(value) == 2 and all(type(number) is int for number in value):
            start, stop = value
            if 0 <= start < stop:
                return start, stop
        said = f"{value[0]}, {value[1]}" if isinstance(value, list) and len(value) == 2 else shown(value)
        self._problems.add(place, f"[{said}] is no range of layers; write [first, last + 1], such as [0, 32]")
        return 0, 0


def layout_of(pieces: list[Piece], names: list[str]) -> Layout:
    """The slices, with positions in ``names``; whoever is not among them is the base."""
    numbers = {name: number for number, name in enumerate(names)}
    return Layout(
        slices=tuple(
            OutputSlice(
                sources=tuple(
                    SliceSource(
                        input=numbers.get(part.name, BASE),
                        start=part.start,
                        stop=part.stop,
                        settings=part.settings if part.name in numbers else {},
                    )
                    for part in piece.parts
                ),
                settings=piece.settings,
            )
            for piece in pieces
        )
    )
