"""What is dumped is read as the same merge, and by mergekit; what is exported says what it lost."""

from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consortium.canonical import replace
from consortium.ids import Digest, Language
from consortium.merging.layers import BASE, Layout, OutputSlice, SliceSource
from consortium.merging.recipe import (
    PLAIN_STEP,
    EmbeddingRows,
    Guards,
    MethodName,
    OuterStep,
    Recipe,
    Setting,
    Settings,
)
from consortium.merging.recipes.export import dump, export
from consortium.merging.recipes.files import load
from consortium.merging.recipes.merge_file import BASE_IS_AN_INPUT, InputPin, MergeFile, MergeModel
from consortium.merging.recipes.signatures import SIGNATURES, Parameter

text = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
tricky = st.sampled_from(
    ["1e5", "no", "~", "null", "0x1f", "2024-01-01", "- a", "a: b", "#", "*x", "'", " ", "\x85\u2028"]
)
words = st.one_of(text, tricky)
names = words.filter(lambda word: "+" not in word and word.count("@") < 2)


def value(parameter: Parameter) -> st.SearchStrategy[Any]:
    if isinstance(parameter.default, bool):
        return st.booleans()
    low, high = max(parameter.least, -1e9), min(parameter.most, 1e9)
    if isinstance(parameter.default, int):
        return st.integers(int(low), 1000)
    numbers = st.floats(low, high, exclude_min=parameter.open[0], exclude_max=parameter.open[1])
    return st.one_of(numbers, st.lists(numbers, min_size=1, max_size=4).map(tuple))


@st.composite
def some_settings(draw: st.DrawFn, known: dict[str, Parameter], needed: bool = False) -> Settings:
    chosen = [n for n, p in known.items() if (needed and p.default is None) or draw(st.booleans())]
    filters = st.one_of(st.none(), words.filter(lambda word: word != "*"))
    return {
        name: tuple(
            draw(
                st.lists(st.builds(Setting, value=value(known[name]), filter=filters), min_size=1, max_size=3)
            )
        )
        for name in chosen
    }


def pins(kind: str) -> st.SearchStrategy[InputPin]:
    digests = st.text("0123456789abcdef", min_size=64, max_size=64).map(Digest)
    return st.builds(
        InputPin,
        kind=st.just(kind),
        digest=st.none() | digests,
        size=st.none() | st.integers(0, 1 << 40),
        tokens=st.integers(0, 1 << 40),
        languages=st.sampled_from([(), (Language("mk"),), (Language("mk"), Language("sr-latn"))]),
        row_counts=st.none() | words,
    )  # fmt: skip


@st.composite
def merges(draw: st.DrawFn) -> MergeFile:
    method = cast(MethodName, draw(st.sampled_from(sorted(SIGNATURES))))
    signature = SIGNATURES[method]
    own, everything = dict(signature.own), dict(signature.parameters)
    count = draw(st.integers(signature.inputs_min, signature.inputs_max or 4))
    base, *inputs = draw(st.lists(names, min_size=count + 1, max_size=count + 1, unique=True))
    sliced = draw(st.booleans())
    deltas = not sliced and draw(st.booleans())
    has_base = (
        signature.base == "required" or deltas or (method not in BASE_IS_AN_INPUT and draw(st.booleans()))
    )
    config_from = None
    if not has_base and method in BASE_IS_AN_INPUT:
        config_from = draw(st.none() | (st.just(base) if sliced else st.sampled_from(inputs)))
    kinds = [draw(st.sampled_from(["model", "delta"])) if deltas else "model" for _ in inputs]
    if deltas:
        kinds[0] = "delta"
    layout = None
    if sliced:
        sources = [*range(count), *([BASE] if has_base else [])]
        layout = Layout(
            slices=tuple(
                OutputSlice(
                    sources=tuple(
                        SliceSource(
                            input=number,
                            start=(start := draw(st.integers(0, 9))),
                            stop=start + height,
                            settings={} if number == BASE else draw(some_settings(own)),
                        )
                        for number in sources
                    ),
                    settings=draw(some_settings(everything)),
                )
                for height in draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
            )
        )
    dtypes = ["float32", "bfloat16", "float16"]
    out_dtype = draw(st.none() | st.sampled_from(dtypes))
    dtype = draw(st.none() | st.sampled_from([*dtypes, "float64"] if out_dtype else dtypes))
    recipe = Recipe(
        method=method,
        parameters=draw(some_settings(everything, needed=True)),
        weights=draw(st.sampled_from(["uniform", "tokens"])),
        cohorts=draw(st.sampled_from(["languages", "all"])),
        guards=draw(
            st.builds(Guards, clip=st.none() | st.floats(0.1, 9), cosine_min=st.none() | st.floats(-1, 1))
        ),
        embedding_rows=draw(
            st.none() | st.builds(EmbeddingRows, tensors=st.lists(words, min_size=1).map(tuple))
        ),
        outer=draw(st.sampled_from([PLAIN_STEP, OuterStep(), OuterStep(optimizer="adam", tau=1e-4)])),
        seed=draw(st.integers(-(1 << 40), 1 << 40)),
        dtype=cast(Any, out_dtype or dtype or "float32"),
        shard_bytes=draw(st.integers(1 << 20, 1 << 40)),
    )
    return MergeFile(
        recipe=recipe,
        models=tuple(
            MergeModel(name=name, settings={} if sliced else draw(some_settings(own)), pin=draw(pins(kind)))
            for name, kind in zip(inputs, kinds, strict=True)
        ),
        base=base if has_base else None,
        config_from=config_from,
        layout=layout,
        dtype=dtype,
        out_dtype=out_dtype,
        tokenizer_source=draw(st.none() | st.sampled_from(["union", "base"]) | names),
        chat_template=draw(st.none() | words),
        gate=draw(st.none() | words),
        base_digest=draw(st.none() | st.just(Digest("c" * 64))),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes") / "r.yml"


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(merge=merges())
def test_what_is_dumped_is_read_as_the_same_merge(merge: MergeFile, file: Path) -> None:
    file.write_text(dump(merge), encoding="utf-8", newline="")
    assert load(file) == merge


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(merge=merges())
def test_mergekits_reader_accepts_what_is_written(merge: MergeFile) -> None:
    config = pytest.importorskip("mergekit.config", reason="the oracle is an extra of its own")
    for written in (dump(merge), export(merge)[0]):
        theirs = config.MergeConfiguration.model_validate(yaml.safe_load(written))
        assert theirs.merge_method == merge.recipe.method
        models = [str(model.model) for model in theirs.models or ()]
        assert models == ([] if merge.layout else [model.name for model in merge.models])
        assert str(theirs.base_model) == str(merge.base or merge.config_from)
        assert (theirs.dtype, theirs.out_dtype) == (merge.dtype, merge.out_dtype)


def merge_of(method: MethodName = "linear", weights: str = "uniform", **more: Any) -> MergeFile:
    models = (
        MergeModel(name="a", pin=InputPin(tokens=300)),
        MergeModel(name="b", settings={"weight": (Setting(value=2.0),)}, pin=InputPin(tokens=100)),
    )
    recipe = Recipe(method=method, weights=cast(Any, weights), outer=PLAIN_STEP)
    return MergeFile(**{"recipe": recipe, "models": models, **more})


def weights_in(written: str) -> list[Any]:
    return [model["parameters"]["weight"] for model in yaml.safe_load(written)["models"]]


def test_export_writes_the_weights_that_mergekit_demands() -> None:
    written, notes = export(merge_of())
    assert weights_in(written) == [1.0, 2.0] and notes == ()
    assert "sprachbund" not in written and "sprachbund" in dump(merge_of())


def test_export_writes_tokens_into_the_weights() -> None:
    merge = merge_of(weights="tokens")
    parameters = {"weight": (Setting(value=(2.0, 4.0), filter="mlp"), Setting(value=1.0))}
    merge = replace(merge, recipe=replace(merge.recipe, parameters=parameters))
    written, _ = export(merge)
    assert weights_in(written) == [
        [{"filter": "mlp", "value": [1.5, 3.0]}, {"value": 0.75}],
        [{"value": 0.5}, {"filter": "mlp", "value": [0.5, 1.0]}, {"value": 0.25}],
    ]


def test_export_writes_one_weight_for_slices_that_have_none() -> None:
    pieces = (
        OutputSlice(sources=(SliceSource(input=0, start=0, stop=1), SliceSource(input=1, start=0, stop=1))),
    )
    bare = tuple(MergeModel(name=name) for name in "ab")
    merge = merge_of(weights="tokens", layout=Layout(slices=pieces), models=bare)
    written, notes = export(merge)
    assert yaml.safe_load(written)["parameters"] == {"weight": 1.0}
    assert notes == ("dropped: weights by tokens, which slices cannot say; write them into the slices",)


def test_export_says_what_it_drops() -> None:
    made = MergeModel(name="a", pin=InputPin(kind="delta", digest=Digest("a" * 64)))
    recipe = Recipe(
        method="dare_ties",
        weights="uniform",
        outer=OuterStep(),
        guards=Guards(clip=2.0),
        embedding_rows=EmbeddingRows(),
        seed=3,
    )
    lost = MergeFile(recipe=recipe, models=(made,), base="b", gate="strict", base_digest=Digest("b" * 64))
    _, notes = export(lost)
    assert notes == (
        "a is a delta, mergekit reads whole models; add it to its base first",
        "a is no longer pinned to its digest",
        "dropped: the outer step, mergekit's result is the plain merge",
        "dropped: the guards, every input counts as it is",
        "dropped: weights of embedding rows by token counts",
        "dropped: the seed; give mergekit --random-seed 3",
        "dropped: the gate",
        "dropped: the base's digest",
    )
    assert export(merge_of("krum"))[1] == ("mergekit has no method krum, it will refuse the recipe",)


def test_a_dump_can_be_read_by_people() -> None:
    settings = {
        "density": (Setting(value=(0.2, 0.8)),),
        "weight": (Setting(value=0.5, filter="mlp"), Setting(value=1)),
    }
    models = (MergeModel(name="org/a", settings=settings, pin=InputPin(kind="delta", tokens=9)),)
    recipe = Recipe(method="ties", weights="tokens", outer=PLAIN_STEP, dtype="bfloat16")
    assert (
        dump(MergeFile(recipe=recipe, models=models, base="./b", dtype="bfloat16"))
        == """\
merge_method: ties
base_model: "./b"
models:
- model: org/a
  parameters:
    density: [0.2, 0.8]
    weight:
    - filter: mlp
      value: 0.5
    - value: 1
dtype: bfloat16
sprachbund:
  schema: 1
  weights: tokens
  inputs:
    org/a:
      kind: delta
      tokens: 9
"""
    )
