"""How a merge is written as YAML: with our block (``dump``), or as mergekit alone understands it (``export``)."""

from collections.abc import Sequence
from typing import Any

import msgspec
import yaml

from consortium.canonical import replace
from consortium.merging.layers import BASE, Layout
from consortium.merging.recipe import PLAIN_STEP, Guards, MethodName, Setting, Settings
from consortium.merging.recipes.merge_file import Extensions, InputPin, MergeFile, MergeModel
from consortium.merging.recipes.settings import shorthand
from consortium.merging.recipes.signatures import SIGNATURES

_OURS_ALONE: frozenset[MethodName] = frozenset(
    {"norm_preserving", *(name for name, signature in SIGNATURES.items() if signature.robust)}
)


def dump(merge: MergeFile) -> str:
    """YAML that ``files.load`` reads as the same merge, and that mergekit's own reader accepts."""
    return _text({**_plain(merge), "sprachbund": _block(merge)})


def export(merge: MergeFile) -> tuple[str, tuple[str, ...]]:
    """YAML without our block, and a sentence for all that it cannot say."""
    recipe = merge.recipe
    notes = []
    if recipe.method in _OURS_ALONE:
        notes.append(f"mergekit has no method {recipe.method}, it will refuse the recipe")
    for model in merge.models:
        if model.pin.kind == "delta":
            notes.append(f"{model.name} is a delta, mergekit reads whole models; add it to its base first")
        if model.pin.digest is not None:
            notes.append(f"{model.name} is no longer pinned to its digest")
    for lost, what in (
        (recipe.outer != PLAIN_STEP, "the outer step, mergekit's result is the plain merge"),
        (recipe.guards != Guards(), "the guards, every input counts as it is"),
        (recipe.embedding_rows is not None, "weights of embedding rows by token counts"),
        (SIGNATURES[recipe.method].draws, f"the seed; give mergekit --random-seed {recipe.seed}"),
        (merge.gate is not None, "the gate"),
        (merge.base_digest is not None, "the base's digest"),
    ):
        if lost:
            notes.append(f"dropped: {what}")
    written = _with_weights(merge, notes)
    return _text(_plain(written)), tuple(notes)


def _with_weights(merge: MergeFile, notes: list[str]) -> MergeFile:
    """Weights written out, which mergekit demands; where tokens weigh, times their share."""
    parameter = SIGNATURES[merge.recipe.method].own.get("weight")
    by_tokens = merge.recipe.weights == "tokens"
    if parameter is None or not (by_tokens or parameter.default is None):
        return merge
    if by_tokens and merge.layout is not None:
        notes.append("dropped: weights by tokens, which slices cannot say; write them into the slices")
    total = sum(model.pin.tokens for model in merge.models)
    models = []
    for model in merge.models:
        share = model.pin.tokens / total if by_tokens and merge.layout is None and total else 1.0
        given = (*model.settings.get("weight", ()), *merge.recipe.parameters.get("weight", ()))
        weights = tuple(_times(entry, share) for entry in given) or (Setting(value=share),)
        models.append(replace(model, settings={**model.settings, "weight": weights}))
    if merge.layout is None:
        return replace(merge, models=tuple(models))
    if any("weight" in settings for settings in _slice_settings(merge)):
        return merge
    parameters = {"weight": (Setting(value=1.0),), **merge.recipe.parameters}
    return replace(merge, recipe=replace(merge.recipe, parameters=parameters))


def _slice_settings(merge: MergeFile) -> list[Settings]:
    pieces = merge.layout.slices if merge.layout else ()
    return [
        settings
        for piece in pieces
        for settings in (piece.settings, *(source.settings for source in piece.sources))
    ]


def _times(entry: Setting, share: float) -> Setting:
    value = entry.value
    return replace(
        entry, value=tuple(one * share for one in value) if isinstance(value, tuple) else value * share
    )


def _plain(merge: MergeFile) -> dict[str, Any]:
    """What stands in mergekit's own keys."""
    base = merge.base or merge.config_from
    pairs = {
        "merge_method": merge.recipe.method,
        "base_model": base,
        "models": None if merge.layout else [_model(model) for model in merge.models],
        "slices": _slices(merge.layout, merge) if merge.layout else None,
        "parameters": shorthand(merge.recipe.parameters) or None,
        "dtype": merge.dtype,
        "out_dtype": merge.out_dtype,
        "tokenizer_source": merge.tokenizer_source,
        "chat_template": merge.chat_template,
    }
    return {key: value for key, value in pairs.items() if value is not None}


def _model(model: MergeModel) -> dict[str, Any]:
    return {"model": model.name, **_parameters(model.settings)}


def _slices(layout: Layout, merge: MergeFile) -> list[dict[str, Any]]:
    names = {BASE: merge.base, **{number: model.name for number, model in enumerate(merge.models)}}
    return [
        {
            "sources": [
                {
                    "model": names[source.input],
                    "layer_range": [source.start, source.stop],
                    **_parameters(source.settings),
                }
                for source in piece.sources
            ],
            **_parameters(piece.settings),
        }
        for piece in layout.slices
    ]


def _parameters(settings: Settings) -> dict[str, Any]:
    return {"parameters": shorthand(settings)} if settings else {}


def _block(merge: MergeFile) -> dict[str, Any]:
    """Our extensions, without what is as always."""
    recipe = merge.recipe
    block = Extensions(
        weights=recipe.weights,
        cohorts=recipe.cohorts,
        guards=recipe.guards,
        embedding_rows=recipe.embedding_rows,
        outer=recipe.outer,
        seed=recipe.seed,
        shard_bytes=recipe.shard_bytes,
        gate=merge.gate,
        base_digest=merge.base_digest,
        inputs={model.name: model.pin for model in merge.models if model.pin != InputPin()},
    )
    plain, usual = msgspec.to_builtins(block), msgspec.to_builtins(Extensions())
    pins = {
        name: {key: value for key, value in pin.items() if value != _USUAL_PIN[key]}
        for name, pin in plain["inputs"].items()
    }
    said = {key: value for key, value in plain.items() if value != usual[key] or key == "schema"}
    return {**said, "inputs": pins} if pins else said


_USUAL_PIN: dict[str, Any] = msgspec.to_builtins(InputPin())


class _Dumper(yaml.SafeDumper):
    """Lists of numbers on one line, no aliases, and quotes where our reader, unlike YAML 1.1, sees a number."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        plain = text.isprintable() and text[:1] not in "-+.0123456789"
        style = (
            None if plain else "|" if all(map(str.isprintable, text.split("\n"))) and "\n" in text else '"'
        )
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def represent_items(self, items: Sequence[Any]) -> yaml.Node:
        flow = all(isinstance(item, int | float) for item in items)
        return self.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=flow)


_Dumper.add_representer(str, _Dumper.represent_text)
_Dumper.add_representer(list, _Dumper.represent_items)
_Dumper.add_representer(tuple, _Dumper.represent_items)


def _text(plain: dict[str, Any]) -> str:
    return yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
