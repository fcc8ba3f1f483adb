"""How a recipe file becomes a merge: mergekit's YAML (0.1.5), and our own words in the block ``sprachbund:``.

A recipe that names one of our methods is read as mergekit reads it. What we do not do is refused with its
line; what neither program heeds, and where our result differs, is said in notes.
"""

from pathlib import Path
from typing import Any, Literal, NoReturn, cast, get_args

import msgspec

from consortium.canonical import replace
from consortium.checking import Place, nearest, shown
from consortium.errors import BadInput
from consortium.ids import digest, language
from consortium.loading import Document, Problems, read
from consortium.merging.plan import check_num_inputs
from consortium.merging.recipe import MethodName, Recipe, Settings
from consortium.merging.recipes.merge_file import (
    BASE_IS_AN_INPUT,
    Extensions,
    InputPin,
    MergeFile,
    MergeModel,
)
from consortium.merging.recipes.notes import differences
from consortium.merging.recipes.parts import Parts, Piece, layout_of
from consortium.merging.recipes.signatures import SIGNATURES

_KEYS = (
    "models", "slices", "modules", "merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source",
    "tokenizer", "chat_template", "parameters", "sprachbund",
)  # fmt: skip
_FORMS = ("models", "slices", "modules")
_NOT_OURS = ("passthrough", "nearswap", "arcee_fusion", "ram", "ramplus_tl")
_DTYPES = ("bfloat16", "float16", "float32", "float64")
_PUBLISHED = get_args(Literal["float32", "bfloat16", "float16"])


def load(path: str | Path) -> MergeFile:
    """The merge that a recipe file describes. Raises BadInput with a line for all that is wrong."""
    return load_noted(path)[0]


def load_noted(path: str | Path) -> tuple[MergeFile, tuple[str, ...]]:
    """``load``, and what a person who knows mergekit should know, ``file:line: ...`` each."""
    document = read(path, aliases=True)
    reader = _Reader(document)
    merge = reader.merge()
    notes = sorted([*reader.notes, *differences(merge)], key=lambda note: document.line(note[0]))
    return merge, tuple(document.worded(place, sentence) for place, sentence in notes)


class _Reader:
    def __init__(self, document: Document) -> None:
        self.notes: list[tuple[Place, str]] = []
        self._problems = Problems(document)
        self._plain = document.value

    def merge(self) -> MergeFile:
        method = self._method()
        plain, extensions = self._plain, self._extensions()
        parts = Parts(method, self._problems, self.notes)
        written_base = plain.get("base_model")
        base = None if written_base is None else parts.model_name(written_base, ("base_model",))
        pieces, parameters = self._pieces(parts)
        base = base or self._common_base(pieces)
        dtype, out_dtype = self._dtype("dtype"), self._dtype("out_dtype")
        tokenizer_source = self._tokenizer_source(parts)
        if not isinstance(plain.get("chat_template"), str | None):
            self._problems.add(("chat_template",), "is no text; write a template's name or the template")
        self._problems.raise_if_any()

        config_from: str | None = None
        has_deltas = any(pin.kind == "delta" for pin in extensions.inputs.values())
        if method in BASE_IS_AN_INPUT and not has_deltas:
            config_from, base = base, None
            if config_from is not None and "slices" not in self._where:
                self._join(config_from, pieces[0])
        self._check(method, base, pieces, parameters, extensions, has_deltas)
        self._problems.raise_if_any()

        names = list(
            dict.fromkeys(part.name for piece in pieces for part in piece.parts if part.name != base)
        )
        recipe = Recipe(
            method=method,
            parameters=parameters,
            weights=extensions.weights,
            cohorts=extensions.cohorts,
            guards=extensions.guards,
            embedding_rows=extensions.embedding_rows,
            outer=extensions.outer,
            seed=extensions.seed,
            dtype=cast(Any, out_dtype or dtype or "float32"),
            shard_bytes=extensions.shard_bytes,
        )
        sliced = "slices" in self._where
        own = {} if sliced else {part.name: part.settings for part in pieces[0].parts}
        return MergeFile(
            recipe=recipe,
            models=tuple(
                MergeModel(name=name, settings=own.get(name, {}), pin=extensions.inputs.get(name, InputPin()))
                for name in names
            ),
            base=base,
            config_from=config_from,
            layout=layout_of(pieces, names) if sliced else None,
            dtype=dtype,
            out_dtype=out_dtype,
            tokenizer_source=tokenizer_source,
            chat_template=plain.get("chat_template"),
            gate=extensions.gate,
            base_digest=extensions.base_digest,
        )

    def _method(self) -> MethodName:
        plain = self._plain
        if not isinstance(plain, dict):
            self._refuse((), f"{shown(plain)} is no recipe; write merge_method: and models:")
        for key in plain:
            if key not in _KEYS:
                sentence = f"not a key of mergekit's, nor ours; ignored, {nearest(key, _KEYS)}"
                self.notes.append(((key,), "is a name; ignored" if key == "name" else sentence))
        name = plain.get("merge_method")
        if name in SIGNATURES:
            return cast(MethodName, name)
        place: Place = ("merge_method",)
        if name is None:
            self._refuse(place, f"'merge_method' is missing; {nearest('', SIGNATURES)}")
        if name == "passthrough":
            self._refuse(
                place, "'passthrough' copies layers and merges nothing; we do not, use mergekit for it"
            )
        if name in _NOT_OURS:
            self._refuse(place, f"{name!r} is mergekit's alone; use mergekit, or {nearest('', SIGNATURES)}")
        self._refuse(place, f"no merge method is called {shown(name)}; {nearest(str(name), SIGNATURES)}")

    def _extensions(self) -> Extensions:
        place: Place = ("sprachbund",)
        value = self._plain.get("sprachbund")
        if value is None:
            return Extensions()
        if not self._problems.check(value, Extensions, place):
            self._problems.raise_if_any()
        extensions = msgspec.convert(value, Extensions)
        if extensions.base_digest is not None:
            self._problems.attempt((*place, "base_digest"), digest, extensions.base_digest)
        for name, pin in extensions.inputs.items():
            inner = (*place, "inputs", name)
            if pin.digest is not None:
                self._problems.attempt((*inner, "digest"), digest, pin.digest)
            for tag in pin.languages:
                self._problems.attempt((*inner, "languages"), language, tag)
            if pin.tokens < 0:
                self._problems.add((*inner, "tokens"), f"{pin.tokens} is no count; write 0 or more")
        return replace(
            extensions,
            inputs={
                name: replace(pin, languages=tuple(sorted(set(pin.languages))))
                for name, pin in extensions.inputs.items()
            },
        )

    def _pieces(self, parts: Parts) -> tuple[list[Piece], Settings]:
        """The slices, or the models as one slice without a range; and the recipe's parameters."""
        plain, place = self._plain, cast(Place, ())
        forms = [form for form in _FORMS if plain.get(form)]
        if len(forms) != 1:
            said = " and ".join(forms) or "none of them"
            self._refuse(
                (forms[-1],) if forms else (), f"{said} given; write exactly one of: {', '.join(_FORMS)}"
            )
        parameters = parts.settings(plain.get("parameters"), ("parameters",))
        if forms == ["modules"]:
            modules = plain["modules"]
            if not isinstance(modules, dict) or len(modules) != 1:
                self._refuse(
                    ("modules",), "we merge models of one module; merge each module's part by itself"
                )
            place = ("modules", *modules)
            [plain] = modules.values()
            forms = [form for form in _FORMS[:2] if isinstance(plain, dict) and plain.get(form)]
            if len(forms) != 1:
                self._refuse(place, "a module has either models or slices; write exactly one of them")
            inner = parts.settings(plain.get("parameters"), (*place, "parameters"))
            parameters = {  # the module's own first: of several that fit, the first counts
                name: (*inner.get(name, ()), *parameters.get(name, ())) for name in {**inner, **parameters}
            }
        self._where: Place = (*place, forms[0])
        value = plain[forms[0]]
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            self._refuse(self._where, f"{shown(value)} does not fit; write a list of '- model: ...' entries")
        if forms == ["models"]:
            return [parts.models(value, self._where)], parameters
        return [parts.slice(one, (*self._where, number)) for number, one in enumerate(value)], parameters

    def _common_base(self, pieces: list[Piece]) -> str | None:
        """What slices say of their base; we know one base for all of the model."""
        bases = {piece.base for piece in pieces}
        written = self._plain.get("base_model")
        for piece in pieces:
            if piece.base is not None and (len(bases) > 1 or written not in (None, piece.base)):
                sentence = f"{shown(piece.base)} is not the base of every slice; keep one base_model for all"
                self._problems.add((*piece.place, "base_model"), sentence)
        return next(iter(bases)) if len(bases) == 1 else None

    def _join(self, base: str, models: Piece) -> None:
        """As in mergekit: for these methods a base is an input like others, listed or not."""
        if all(part.name != base for part in models.parts):
            models.add(base)
            sentence = f"{base} joins the inputs, as in mergekit, since this method takes no base"
            self.notes.append((("base_model",), sentence))

    def _check(
        self,
        method: MethodName,
        base: str | None,
        pieces: list[Piece],
        parameters: Settings,
        extensions: Extensions,
        has_deltas: bool,
    ) -> None:
        signature, add = SIGNATURES[method], self._problems.add
        if base is None and (signature.base == "required" or has_deltas):
            why = "deltas start from a base" if has_deltas else f"{method} merges changes to a base"
            add(("merge_method",), f"{why}; add base_model:")
        if has_deltas and "slices" in self._where:
            add(self._where, "slices are of models, and some inputs are deltas; make models of them first")
        known = {part.name for piece in pieces for part in piece.parts}
        for name in extensions.inputs:
            if name not in known - {base}:
                add(("sprachbund", "inputs", name), f"no such input; {nearest(name, known - {base})}")
        for piece in pieces:
            inputs = []
            for part in piece.parts:
                if part.name != base:
                    inputs.append(part)
                elif part.settings:
                    self.notes.append(
                        (part.place, "the base's own parameters have no effect, as in mergekit")
                    )
                if part.name == base and method in BASE_IS_AN_INPUT:
                    add(part.place, "is the base that the deltas start from; take it out of the models")
            if base is not None and base not in known and "slices" in self._where:
                add(piece.place, f"no source is of the base {base}; add it with its layer_range")
            try:
                check_num_inputs(method, signature, len(inputs))
            except BadInput as error:
                add(piece.place, str(error))
            if extensions.weights == "tokens" or "sprachbund" in self._plain:
                continue  # whoever weighs by tokens need not write weights; see plan_tensors
            for part in inputs:
                given = {**parameters, **piece.settings, **part.settings}
                for name, parameter in signature.own.items():
                    if parameter.default is None and name not in given:
                        add(part.place, f"{name!r} is missing; add 'parameters: {{{name}: 1.0}}'")
        for name, parameter in signature.shared.items():
            if parameter.default is None and not all(
                name in {**parameters, **one.settings} for one in pieces
            ):
                add(("merge_method",), f"{method} needs {name!r}; add 'parameters: {{{name}: 0.5}}'")

    def _dtype(self, key: str) -> str | None:
        value = self._plain.get(key)
        if value is None:
            return None
        name = value.removeprefix("torch.") if isinstance(value, str) else value
        if name not in _DTYPES:
            self._problems.add(
                (key,), f"{shown(value)} is no dtype of ours; write one of: {', '.join(_DTYPES)}"
            )
        elif name not in _PUBLISHED and (key == "out_dtype" or not self._plain.get("out_dtype")):
            sentence = f"{name} is not published; add out_dtype: float32 (sums are in float64 anyhow)"
            self._problems.add((key,), sentence)
        return cast(str, name)

    def _tokenizer_source(self, parts: Parts) -> str | None:
        place: Place = ("tokenizer_source",)
        value, inner = self._plain.get("tokenizer_source"), self._plain.get("tokenizer")
        if inner is not None:
            if value is not None:
                self._problems.add(("tokenizer",), "stands beside tokenizer_source; keep one of them")
            if not isinstance(inner, dict):
                self._problems.add(("tokenizer",), f"{shown(inner)} does not fit; write 'source: base'")
                return None
            for key in inner.keys() - {"source"}:
                sentence = "we change no single tokens and pad nothing; remove it, or use mergekit"
                self._problems.add(("tokenizer", key), sentence)
            place, value = ("tokenizer", "source"), inner.get("source", "union")
        return None if value is None else parts.model_name(value, place)

    def _refuse(self, place: Place, sentence: str) -> NoReturn:
        self._problems.add(place, sentence)
        self._problems.raise_if_any()
        raise AssertionError("unreachable: there was a problem")
