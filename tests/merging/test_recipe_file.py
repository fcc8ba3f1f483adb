"""Recipe files: mergekit's dialect and our block, read as mergekit reads it, or refused with the line."""

from pathlib import Path

import pytest

from consortium.errors import BadInput
from consortium.merging.layers import BASE, OutputSlice, SliceSource
from consortium.merging.recipe import PLAIN_STEP, Guards, OuterStep, Recipe, Setting
from consortium.merging.recipes.files import load, load_noted
from consortium.merging.recipes.merge_file import InputPin, MergeFile, MergeModel

TIES = """\
merge_method: ties
base_model: org/base
models:
  - model: org/base
    # no parameters necessary for the base
  - model: org/a
    parameters:
      density: [1, 0.7, 0.1]  # gradient
      weight: 1.0
  - model: org/b@v2
    parameters:
      density: 0.33
      weight:
        - filter: mlp
          value: 0.5
        - value: 0
parameters:
  normalize: true
  int8_mask: true
dtype: float16
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def loaded(text: str) -> MergeFile:
    Path("r.yml").write_text(text, encoding="utf-8")
    return load("r.yml")


def notes(text: str) -> list[str]:
    """Those that are about this file rather than about the method."""
    Path("r.yml").write_text(text, encoding="utf-8")
    return [note for note in load_noted("r.yml")[1] if "mergekit would compute" not in note]


def test_a_recipe_of_mergekits_is_read_as_it_is() -> None:
    assert loaded(TIES) == MergeFile(
        recipe=Recipe(
            method="ties",
            parameters={"normalize": (Setting(value=True),)},
            weights="uniform",
            outer=PLAIN_STEP,
            dtype="float16",
        ),
        models=(
            MergeModel(
                name="org/a",
                settings={"density": (Setting(value=(1.0, 0.7, 0.1)),), "weight": (Setting(value=1.0),)},
            ),
            MergeModel(
                name="org/b@v2",
                settings={
                    "density": (Setting(value=0.33),),
                    "weight": (Setting(value=0.5, filter="mlp"), Setting(value=0.0)),
                },
            ),
        ),
        base="org/base",
        dtype="float16",
    )


def test_our_block_says_what_mergekit_cannot() -> None:
    block = f"""
sprachbund:
  weights: tokens
  seed: 7
  cohorts: all
  guards: {{clip: 2}}
  outer: {{learning_rate: 0.7, momentum: 0.9}}
  gate: strict
  base_digest: {"b" * 64}
  inputs:
    org/a: {{kind: delta, digest: {"a" * 64}, size: 10, tokens: 900, languages: [sq, mk], row_counts: counts}}
"""
    merge = loaded(TIES + block)
    assert merge.recipe.weights == "tokens" and merge.recipe.seed == 7 and merge.recipe.cohorts == "all"
    assert merge.recipe.guards == Guards(clip=2.0)
    assert merge.recipe.outer == OuterStep(learning_rate=0.7, momentum=0.9)
    assert (merge.gate, merge.base_digest) == ("strict", "b" * 64)
    assert merge.models[0].pin == InputPin(
        kind="delta", digest="a" * 64, size=10, tokens=900, languages=("mk", "sq"), row_counts="counts"
    )
    assert merge.models[1].pin == InputPin()


def test_slices_are_read_with_their_settings_and_the_base_in_its_place() -> None:
    merge = loaded("""\
merge_method: slerp
base_model: b
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [1, 3]}
    parameters: {t: 0.25}
  - sources:
      - {model: b, layer_range: [3, 4]}
      - {model: a, layer_range: [0, 1]}
parameters: {t: [{filter: mlp, value: [0, 1]}, {value: 0.5}]}
""")
    assert [model.name for model in merge.models] == ["a"] and merge.base == "b"
    assert merge.layout is not None and merge.layout.num_layers == 3
    assert merge.layout.slices[0] == OutputSlice(
        sources=(SliceSource(input=0, start=0, stop=2), SliceSource(input=BASE, start=1, stop=3)),
        settings={"t": (Setting(value=0.25),)},
    )


def test_a_base_that_every_slice_names_is_the_base() -> None:
    text = "merge_method: slerp\nparameters: {t: 0.5}\nslices:\n" + "".join(
        f"  - base_model: {base}\n    sources: [{{model: a, layer_range: [0, 1]}}, {{model: b, layer_range: [0, 1]}}]\n"
        for base in "bb"
    )
    assert loaded(text).base == "b"
    with pytest.raises(
        BadInput, match=r"r.yml:4: slices\[0\].base_model: 'b' is not the base of every slice"
    ):
        loaded(text.replace("base_model: b", "base_model: a", 2).replace("base_model: a", "base_model: b", 1))


def test_for_linear_the_base_joins_the_inputs_as_in_mergekit() -> None:
    merge = loaded("merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nparameters: {weight: 1}\n")
    assert [model.name for model in merge.models] == ["a", "b"]
    assert (merge.base, merge.config_from, merge.companions) == (None, "b", "b")
    same = loaded(
        "merge_method: linear\nbase_model: b\nmodels: [{model: b}, {model: a}]\nparameters: {weight: 1}\n"
    )
    assert [model.name for model in same.models] == ["b", "a"]


def test_for_linear_deltas_start_from_the_base() -> None:
    text = "merge_method: linear\nbase_model: b\nmodels: [{model: a}]\nsprachbund: {inputs: {a: {kind: delta}}}\n"
    merge = loaded(text)
    assert [model.name for model in merge.models] == ["a"] and (merge.base, merge.config_from) == ("b", None)
    with pytest.raises(BadInput, match=r"models\[1\]: is the base that the deltas start from"):
        loaded(text.replace("[{model: a}]", "[{model: a}, {model: b}]"))
    with pytest.raises(BadInput, match="deltas start from a base; add base_model:"):
        loaded(text.replace("base_model: b\n", ""))


def test_without_a_base_config_and_tokenizer_are_the_first_models() -> None:
    text = "merge_method: karcher\nmodels: [{model: z}, {model: a}]\n"
    assert loaded(text).companions == "z"
    assert any("config and tokenizer are those of z" in note for note in notes(text))


def test_one_module_is_a_model_and_its_parameters_come_first() -> None:
    merge = loaded("""\
merge_method: linear
modules:
  text:
    models: [{model: a}]
    parameters: {weight: [{filter: mlp, value: 2}]}
parameters: {weight: 1}
""")
    assert merge.recipe.parameters == {"weight": (Setting(value=2.0, filter="mlp"), Setting(value=1.0))}


def test_yaml_1_1_as_mergekits_users_write_it() -> None:
    merge = loaded("""\
merge_method: della
base_model: b
models:
  - model: a
    parameters: &mine {weight: 1e-1, density: '0.5', epsilon: .1}
  - model: c
    parameters: {<<: *mine, weight: 2}
  - model: d
    parameters: *mine
parameters: {normalize: yes, rescale: off, lambda: "1e-5"}
""")
    tenth = {
        "weight": (Setting(value=0.1),),
        "density": (Setting(value=0.5),),
        "epsilon": (Setting(value=0.1),),
    }
    assert [model.settings for model in merge.models] == [
        tenth,
        tenth | {"weight": (Setting(value=2.0),)},
        tenth,
    ]
    assert merge.recipe.parameters == {
        "normalize": (Setting(value=True),),
        "rescale": (Setting(value=False),),
        "lambda": (Setting(value=1e-5),),
    }


def test_models_may_be_mappings_and_dtypes_torchs() -> None:
    merge = loaded("""\
merge_method: karcher
models: [{model: {model: {path: a, revision: v1}}}, {model: {model: b}}]
dtype: torch.float64
out_dtype: torch.bfloat16
tokenizer: {source: base}
chat_template: "{{ messages }}"
""")
    assert [model.name for model in merge.models] == ["a@v1", "b"]
    assert (merge.dtype, merge.out_dtype, merge.recipe.dtype) == ("float64", "bfloat16", "bfloat16")
    assert (merge.tokenizer_source, merge.chat_template) == ("base", "{{ messages }}")
    assert loaded("merge_method: karcher\nmodels: [{model: a}]\ntokenizer: {}\n").tokenizer_source == "union"
    assert loaded("merge_method: karcher\nmodels: [{model: a}]\n").output_dtype is None


# -- notes


def test_what_has_no_effect_is_noted_with_its_line() -> None:
    text = (
        TIES.replace("dtype: float16", "dtype: float32")
        .replace("weight: 1.0", "wieght: 1.0\n      weight: 1.0\n      lambda: 2")
        .replace("    # no parameters necessary for the base", "    parameters: {weight: 3}\n    lora: x")
        + "name: mine\nout_dytpe: float16\n"
    )
    assert notes(text) == [
        "r.yml:1: merge_method: of elements that are equally large at the threshold, those with the lowest index are "
        "kept; mergekit keeps any of them. Nothing else differs",
        "r.yml:4: models[0]: the base's own parameters have no effect, as in mergekit",
        "r.yml:6: models[0].lora: has no effect, as in mergekit; write one of: model, parameters",
        "r.yml:10: models[1].parameters.wieght: ties has no such parameter; ignored, as in mergekit; "
        "did you mean 'weight'?",
        "r.yml:12: models[1].parameters.lambda: is for all of ties; here ignored, as in mergekit",
        "r.yml:22: parameters.int8_mask: has no effect here: signs are elected without a mask in memory",
        "r.yml:24: name: is a name; ignored",
        "r.yml:25: out_dytpe: not a key of mergekit's, nor ours; ignored, did you mean 'out_dtype'?",
    ]


@pytest.mark.parametrize(
    ("method", "said", "unsaid"),
    [
        ("dare_ties", ["divided by density", "drawn anew"], ["lowest index"]),
        ("dare_linear, parameters: {weight: 1, rescale: false}", ["drawn anew"], ["divided"]),
        ("della", ["divided by its chance"], ["divided by density"]),
        ("breadcrumbs", ["lowest index"], ["drawn", "divided"]),
        ("task_arithmetic", [], ["lowest index", "drawn", "divided"]),
    ],
)  # fmt: skip
def test_where_our_result_differs_is_noted(method: str, said: list[str], unsaid: list[str]) -> None:
    rest = "" if "parameters" in method else ", parameters: {weight: 1}"
    found = " ".join(notes(f"{{merge_method: {method}{rest}, base_model: b, models: [{{model: a}}]}}"))
    assert all(word in found for word in said) and not any(word in found for word in unsaid)


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        ("dtype: bfloat16", "r.yml:2: dtype: mergekit would compute in bfloat16"),
        ("", "in the models' own dtype"),
        ("dtype: float32", ""),
    ],
)
def test_what_mergekit_would_compute_in_is_noted(dtype: str, words: str) -> None:
    Path("r.yml").write_text(f"merge_method: karcher\n{dtype}\nmodels: [{{model: a}}]\nbase_model: a\n")
    found = [note for note in load_noted("r.yml")[1] if "would compute" in note]
    assert any(words in note for note in found) if words else not found


# -- refusals

GOOD = """\
merge_method: ties
base_model: b
models:
  - model: a
    parameters: {weight: 1, density: 0.5}
  - model: c
    parameters: {weight: 1}
"""


MODELS = GOOD[GOOD.index("models:") :]


def block(text: str) -> str:
    return f"sprachbund: {{{text}}}\nbase_model"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ties", "passthrough", "r.yml:1: merge_method: 'passthrough' copies layers and merges nothing; we do not"),
        ("ties", "ram", "r.yml:1: merge_method: 'ram' is mergekit's alone; use mergekit, or write one of: breadcrumbs"),
        ("ties", "tise", "r.yml:1: merge_method: no merge method is called 'tise'; did you mean 'ties'?"),
        ("merge_method: ties\n", "", "r.yml:1: merge_method: 'merge_method' is missing; write one of: breadcrumbs"),
        ("base_model: b\n", "", "r.yml:1: merge_method: ties merges changes to a base; add base_model:"),
        ("model: a\n", "model: a+adapter\n", "r.yml:4: models[0].model: 'a+adapter' is a model and an adapter (LoRA)"),
        ("model: a\n", "model: {model: a, lora: x}\n", "r.yml:4: models[0].model: lora: we merge whole models"),
        ("model: a\n", "model: a@1@2\n", "r.yml:4: models[0].model: 'a@1@2' has two '@'"),
        ("model: a\n", "model: 3\n", "r.yml:4: models[0].model: 3 names no model"),
        ("model: a\n", "name: a\n", "r.yml:4: models[0]: 'model' is missing"),
        ("model: c\n", "model: a\n", "r.yml:6: models[1].model: a stands in it twice"),
        ("density: 0.5", "density: 1.5", "r.yml:5: models[0].parameters.density: is 1.5; write a number in [0, 1]"),
        ("density: 0.5", "density: [0.1, 2]", "r.yml:5: models[0].parameters.density: is 2.0; write"),
        ("density: 0.5", "density: many", "r.yml:5: models[0].parameters.density: 'many' is not what we expect here"),
        ("density: 0.5", "density: []", "r.yml:5: models[0].parameters.density: is a list of 0 numbers"),
        ("density: 0.5", "density: [{value: 1}, 3]", "density[1]: 3 does not fit; write a mapping"),
        ("density: 0.5", "density: [{filter: 3, value: 1}]", "models[0].parameters.density[0].filter: 3 does not fit"),
        ("{weight: 1}", "[weight]", "r.yml:7: models[1].parameters: a list does not fit; write 'name: value' pairs"),
        ("parameters: {weight: 1}", "", "r.yml:6: models[1]: 'weight' is missing; add 'parameters: {weight: 1.0}'"),
        ("models:", "slices: [{sources: []}]\nmodels:", "models and slices given; write exactly one of"),
        (MODELS, "", "none of them given; write exactly one of: models, slices, modules"),
        (MODELS, "models: [{model: b}]", "r.yml:3: models: 0 inputs besides the base; method ties"),
        (MODELS, "models: [a]", "r.yml:3: models: a list does not fit; write a list of '- model:"),
        (MODELS, "modules: {a: {}, b: {}}", "r.yml:3: modules: we merge models of one module"),
        ("base_model", "dtype: int64\nbase_model", "r.yml:2: dtype: 'int64' is no dtype of ours"),
        ("base_model", "dtype: float64\nbase_model", "r.yml:2: dtype: float64 is not published; add out_dtype:"),
        ("base_model", "tokenizer: {tokens: {x: {}}}\nbase_model", "r.yml:2: tokenizer.tokens: we change no single"),
        ("base_model", "tokenizer: {}\ntokenizer_source: base\nbase_model", "r.yml:2: tokenizer: stands beside"),
        ("base_model", "chat_template: 3\nbase_model", "r.yml:2: chat_template: is no text"),
        ("base_model", block("gate: 3"), "r.yml:2: sprachbund.gate: 3 does not fit; write text"),
        ("base_model", block("inptus: {}"), "sprachbund.inptus: unknown key; did you mean 'inputs'?"),
        ("base_model", block("inputs: {x: {}}"), "sprachbund.inputs.x: no such input; write one of: a, c"),
        ("base_model", block("inputs: {a: {digest: abc}}"), "inputs.a.digest: digest 'abc': expected 64"),
        ("base_model", block("inputs: {a: {languages: [MK]}}"), "language 'MK': expected a BCP-47 tag"),
        ("base_model", block("inputs: {a: {tokens: -1}}"), "-1 is no count; write 0 or more"),
        ("base_model", "x: *nowhere\nbase_model", "r.yml:2: alias 'nowhere' has no anchor before it; write"),
    ],
)  # fmt: skip
def test_what_we_do_not_do_is_refused_with_its_line(old: str, new: str, words: str) -> None:
    assert old in GOOD
    with pytest.raises(BadInput) as caught:
        loaded(GOOD.replace(old, new, 1))
    assert words in str(caught.value)


SLICED = """\
merge_method: slerp
base_model: b
parameters: {t: 0.5}
slices:
  - sources:
      - {model: a, layer_range: [0, 2]}
      - {model: b, layer_range: [0, 2]}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[0, 2]", "[2, 0]", "r.yml:6: slices[0].sources[0].layer_range: [2, 0] is no range of layers"),
        ("[0, 2]", "[0, 3]", "r.yml:5: slices[0].sources: its sources have 3, 2 layers; give each as many"),
        ("[0, 2]", "2", "slices[0].sources[0].layer_range: [2] is no range of layers"),
        ("      - {model: b, layer_range: [0, 2]}\n", "", "r.yml:5: slices[0]: no source is of the base b"),
        ("model: b, ", "model: a, ", "slices[0].sources[1].model: a stands in it twice"),
        ("model: b, layer", "model: c, layer", "2 inputs besides the base; method slerp takes exactly 1"),
        ("parameters: {t: 0.5}\n", "", "r.yml:1: merge_method: slerp needs 't'; add 'parameters: {t: 0.5}'"),
        ("slices:", "sprachbund: {inputs: {a: {kind: delta}}}\nslices:", "slices are of models, and some inputs are"),
        (SLICED[SLICED.index("  - sources") :], "  - {}", "slices[0].sources: nothing does not fit; write a list"),
    ],
)  # fmt: skip
def test_slices_that_cannot_be_are_refused_with_their_line(old: str, new: str, words: str) -> None:
    assert loaded(SLICED)
    with pytest.raises(BadInput) as caught:
        loaded(SLICED.replace(old, new, 1))
    assert words in str(caught.value)


def test_several_problems_are_said_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        loaded(GOOD.replace("density: 0.5", "density: 7").replace("model: c", "model: c+d"))
    assert len(str(caught.value).splitlines()) == 2


def test_documents_after_the_first_are_refused() -> None:
    with pytest.raises(BadInput, match=r"r.yml:8: a second document starts; keep one a file"):
        loaded(GOOD + "---\nname: second\n")


def test_aliases_that_grow_without_bound_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 40)]
    with pytest.raises(BadInput, match="aliases stand for more than 10000 values"):
        loaded("\n".join(lines))
    with pytest.raises(BadInput, match="'<<' takes a mapping"):
        loaded("a: {<<: 3}")
