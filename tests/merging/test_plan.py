"""The plan of a merge: parameters and sources of every tensor, as mergekit 0.1.5 plans it, or a refusal."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from consortium.errors import BadInput, Refused
from consortium.merging.layers import OutputSlice, SliceSource, layer_of
from consortium.merging.plan import BASE, Layout, TensorPlan, plan_tensors, resolve, value_at
from consortium.merging.recipe import MethodName, Recipe, Setting, Settings
from consortium.merging.recipes.files import load
from consortium.merging.recipes.settings import shorthand
from consortium.merging.recipes.signatures import SIGNATURES, Parameter, members_min

Shapes = dict[str, tuple[int, ...]]


def shapes_of(num_layers: int, width: int = 2) -> Shapes:
    layers = {
        f"model.layers.{i}.{part}.weight": (width,) for i in range(num_layers) for part in ("mlp", "norm")
    }
    return {
        "model.embed_tokens.weight": (3, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (3, width),
    } | layers


def recipe(method: MethodName = "linear", **parameters: Any) -> Recipe:
    found: Settings = {}
    for name, value in parameters.items():
        listed = isinstance(value, tuple) and isinstance(value[0], Setting)
        found[name] = value if listed else (Setting(value=value),)
    return Recipe(method=method, weights="uniform", parameters=found)


def planned(made: Recipe, own: list[Settings], layers: int = 4, **more: Any) -> dict[str, TensorPlan]:
    base = None if SIGNATURES[made.method].base == "ignored" else shapes_of(layers)
    plans = plan_tensors(made, own, base, [shapes_of(layers)] * len(own), **more)
    assert [plan.name for plan in plans] == sorted(plan.name for plan in plans)
    return {plan.name: plan for plan in plans}


def weight(value: Any, filter: str | None = None) -> Settings:
    return {"weight": (Setting(value=value, filter=filter),)}


# -- parameters


def test_the_most_special_setting_that_fits_a_tensor_counts() -> None:
    made = recipe(weight=(Setting(value=1.0, filter="norm"), Setting(value=2.0)))
    plans = planned(made, [weight(5.0, "layers.0.norm"), {}])
    found = {name: [own["weight"] for own in plan.own] for name, plan in plans.items()}
    assert found["model.layers.0.norm.weight"] == [5.0, 1.0]
    assert found["model.layers.1.norm.weight"] == [1.0, 1.0]
    assert found["model.layers.0.mlp.weight"] == [2.0, 2.0]


def test_a_gradient_runs_over_the_layers_and_begins_at_its_first_value_elsewhere() -> None:
    plans = planned(recipe(weight=(0.0, 1.0, 4.0), normalize=False), [{}], layers=5)
    found = {name: plan.own[0]["weight"] for name, plan in plans.items()}
    assert [found[f"model.layers.{i}.mlp.weight"] for i in range(5)] == [0.0, 0.5, 1.0, 2.5, 4.0]
    assert {found["model.embed_tokens.weight"], found["model.norm.weight"], found["lm_head.weight"]} == {0.0}
    [only] = [
        one
        for name, one in planned(recipe(weight=(0.0, 1.0), normalize=False), [{}], layers=1).items()
        if "mlp" in name
    ]
    assert only.own[0]["weight"] == 1.0  # mergekit's choice for a single layer


def test_two_stacks_of_layers_have_a_gradient_each() -> None:
    shapes = {f"vision.blocks.{i}.w": (2,) for i in range(3)} | {f"text.h.{i}.w": (2,) for i in range(2)}
    plans = plan_tensors(recipe(weight=(0.0, 1.0), normalize=False), [{}], None, [shapes])
    assert [plan.own[0]["weight"] for plan in plans] == [0.0, 1.0, 0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.12.mlp.experts.3.w1.weight", ("model.layers.", 12, ".mlp.experts.3.w1.weight")),
        ("transformer.h.3.ln_1.bias", ("transformer.h.", 3, ".ln_1.bias")),
        ("encoder.block.7.layer.0.SelfAttention.q.weight", ("encoder.block.", 7, ".layer.0.SelfAttention.q.weight")),
        ("layers.0.w", ("layers.", 0, ".w")),
        ("model.players.0.w", None),
        ("model.merger.mlp.0.weight", None),
        ("model.norm.weight", None),
    ],
)  # fmt: skip
def test_a_layers_number_is_read_off_the_name(name: str, place: tuple[str, int, str] | None) -> None:
    assert layer_of(name) == place


def test_defaults_are_filled_in_and_a_weight_that_nobody_speaks_of_is_one() -> None:
    [plan, *_] = planned(recipe("ties"), [{}]).values()
    assert plan.shared == {"normalize": True, "rescale": False, "lambda": 1.0}
    assert plan.own == ({"weight": 1.0, "density": 1.0},)


def test_a_weight_that_no_filter_gives_to_a_tensor_is_missing() -> None:
    with pytest.raises(BadInput, match=r"'lm_head.weight': parameter 'weight' of site-a is missing"):
        planned(recipe(), [weight(1.0, "mlp")], labels=["site-a"])
    with pytest.raises(BadInput, match="'t' is missing, method slerp has no default"):
        planned(recipe("slerp"), [{}])


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("ties", {"density": 1.5}, "'density' of input 1 is 1.5; write a number in [0, 1]"),
        ("ties", {"density": -0.1}, "'density' of input 1 is -0.1; write a number in [0, 1]"),
        ("ties", {"density": (0.5, 1.5)}, "write a number in [0, 1]"),
        ("ties", {"density": True}, "'density' of input 1 is true; write a number in [0, 1]"),
        ("ties", {"normalize": 1}, "'normalize' is 1; write true or false"),
        ("ties", {"lambda": math.nan}, "'lambda' is nan; write a number"),
        ("breadcrumbs", {"gamma": 1.0}, "write a number in [0, 1)"),
        ("karcher", {"max_iter": 2.5}, "'max_iter' is 2.5; write a whole number of at least 0"),
        ("karcher", {"tol": 0.0}, "'tol' is 0.0; write a number above 0"),
        ("trimmed_mean", {"trim": 0.5}, "write a number in [0, 0.5)"),
        ("krum", {"byzantine": -1}, "write a whole number of at least 0"),
        ("della", {"density": 0.1}, "density 0.1 and epsilon 0.15 of input 1 give chances from -0.05 to 0.25"),
        ("della", {"density": 0.9, "epsilon": 0.1}, "must lie between 0 and 1, lower epsilon"),
        ("ties", {"densty": 0.5}, "the recipe: ties has no parameter 'densty'"),
        ("sce", {"weight": 0.5}, "the recipe: sce has no parameter 'weight'"),
    ],
)  # fmt: skip
def test_what_a_parameter_may_not_be(method: MethodName, parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput) as caught:
        planned(recipe(method, **parameters), [{}, {}])
    assert words in str(caught.value)


def test_a_shared_parameter_of_one_input_is_refused() -> None:
    with pytest.raises(BadInput, match="input 2: ties has no parameter 'normalize' there"):
        planned(recipe("ties"), [{}, {"normalize": (Setting(value=True),)}])


def test_della_keeps_everything_or_nothing_without_a_chance() -> None:
    assert planned(recipe("della", density=1.0), [{}]) and planned(recipe("della", density=0.0), [{}])


@pytest.mark.parametrize(
    ("made", "refused"),
    [
        (recipe(), True),
        (recipe(normalize=False), False),
        (recipe("task_arithmetic"), False),
        (recipe("task_arithmetic", normalize=True), True),
        (recipe("multislerp"), True),
        (recipe("nuslerp"), True),
        (recipe("ties"), False),  # its divisor is of those that agree
        (Recipe(method="linear", weights="tokens"), False),  # the merge multiplies by tokens first
    ],
)
def test_weights_that_sum_to_zero_are_refused_where_they_divide(made: Recipe, refused: bool) -> None:
    own = [weight(1.0), weight(-1.0)]
    if refused:
        with pytest.raises(Refused, match="the weights 1, -1 sum to zero"):
            planned(made, own)
    else:
        assert planned(made, own)


@pytest.mark.parametrize(
    ("method", "count", "words"),
    [
        ("linear", 0, "0 inputs; method linear takes at least 1"),
        ("slerp", 2, "2 inputs besides the base; method slerp takes exactly 1"),
        ("nuslerp", 3, "3 inputs; method nuslerp takes exactly 2"),
        ("model_stock", 1, "1 inputs besides the base; method model_stock takes at least 2"),
    ],
)
def test_a_method_takes_so_many_inputs(method: MethodName, count: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        planned(recipe(method, **({"t": 0.5} if method == "slerp" else {})), [{}] * count)
    assert words in str(caught.value)


def test_a_method_that_merges_changes_wants_a_base() -> None:
    with pytest.raises(BadInput, match="method ties merges changes to a base; name the base model"):
        plan_tensors(recipe("ties"), [{}], None, [shapes_of(2)])


def test_a_base_that_the_method_ignores_is_no_source() -> None:
    assert {plan.base for plan in plan_tensors(recipe("karcher"), [{}], shapes_of(1), [shapes_of(1)])} == {
        None
    }


def test_how_many_a_robust_method_needs() -> None:
    assert members_min("krum", {}) == 3 and members_min("krum", {"byzantine": 2}) == 7
    assert members_min("multi_krum", {"keep": 5}) == 5
    assert members_min("trimmed_mean", {}) == 5 and members_min("trimmed_mean", {"trim": 0.0}) == 1
    assert members_min("geometric_median", {}) == 3 and members_min("model_stock", {}) == 2


# -- tensors


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"extra": (1,)}, "the base lacks tensor 'extra', which input 2 has"),
        ({"model.norm.weight": None}, "input 2 lacks tensor 'model.norm.weight', which the base has"),
        ({"model.norm.weight": None, "lm_head.weight": None}, "lacks tensor 'lm_head.weight' and 1 more"),
        ({"model.norm.weight": (9,)}, "'model.norm.weight' has shape [9] in input 2 and [2] in the base"),
    ],
)
def test_tensors_that_do_not_fit_together_are_named(change: dict[str, Any], words: str) -> None:
    other = {name: shape for name, shape in (shapes_of(2) | change).items() if shape is not None}
    with pytest.raises(BadInput) as caught:
        plan_tensors(recipe("task_arithmetic"), [{}, {}], shapes_of(2), [shapes_of(2), other])
    assert words in str(caught.value)


def sliced(*ranges: tuple[tuple[int, int, int], ...], parameters: tuple[Settings, ...] = ()) -> Layout:
    made = parameters or ({},) * len(ranges)
    return Layout(
        slices=tuple(
            OutputSlice(
                sources=tuple(SliceSource(input=i, start=start, stop=stop) for i, start, stop in sources),
                settings=inner,
            )
            for sources, inner in zip(ranges, made, strict=True)
        )
    )


def test_slices_take_layers_from_anywhere_and_change_their_number() -> None:
    layout = sliced(((0, 0, 2), (BASE, 1, 3)), ((0, 3, 4), (BASE, 0, 1)))
    plans = planned(recipe("slerp", t=(0.0, 1.0)), [{}], layout=layout)
    assert layout.num_layers == 3
    found = {n: (p.sources, p.base, p.shared["t"]) for n, p in plans.items() if "mlp" in n}
    assert found == {
        "model.layers.0.mlp.weight": (((0, "model.layers.0.mlp.weight"),), "model.layers.1.mlp.weight", 0.0),
        "model.layers.1.mlp.weight": (((0, "model.layers.1.mlp.weight"),), "model.layers.2.mlp.weight", 1.0),
        "model.layers.2.mlp.weight": (((0, "model.layers.3.mlp.weight"),), "model.layers.0.mlp.weight", 1.0),
    }
    assert plans["lm_head.weight"].shared["t"] == 0.0


def test_what_lies_before_the_layers_belongs_to_the_first_slice_and_the_rest_to_the_last() -> None:
    layout = sliced(((0, 0, 2),), ((1, 0, 2),), parameters=(weight(1.0), weight(2.0)))
    plans = (
        planned(recipe("karcher"), [{}, {}], layout=layout)
        if False
        else planned(recipe(), [{}, {}], layout=None)
    )
    assert plans
    arranged = {p.name: p for p in plan_tensors(recipe(), [{}, {}], None, [shapes_of(2)] * 2, layout)}
    assert arranged["model.embed_tokens.weight"].sources == ((0, "model.embed_tokens.weight"),)
    assert arranged["lm_head.weight"].sources == ((1, "lm_head.weight"),)
    assert arranged["lm_head.weight"].own == ({"weight": 2.0},)


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        (sliced(((0, 0, 2), (1, 0, 3))), "slice 1: its sources have 2, 3 layers; give each as many"),
        (sliced(((0, 0, 4), (1, 2, 6))), "slice 1: layer_range [2, 6] of input 2, which has 4 layers"),
        (sliced(((0, 2, 2), (1, 2, 2))), "layer_range [2, 2] of input 1"),
        (sliced(((0, 0, 2), (0, 1, 3), (1, 0, 2))), "slice 1: a model stands in it twice"),
        (sliced(((0, 0, 4),)), "input 2 stands in no slice; use it or leave it out"),
    ],
)
def test_slices_that_cannot_be_cut_are_refused(layout: Layout, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        plan_tensors(recipe(), [{}, {}], None, [shapes_of(4)] * 2, layout)
    assert words in str(caught.value)


def test_a_slice_without_the_base_is_refused_where_the_method_needs_it() -> None:
    with pytest.raises(BadInput, match="slice 2 has no source from the base; method ties needs one"):
        planned(recipe("ties"), [{}], layout=sliced(((0, 0, 2), (BASE, 0, 2)), ((0, 2, 4),)))


def test_slices_of_a_model_with_two_stacks_are_refused() -> None:
    shapes = {"a.layers.0.w": (1,), "b.layers.0.w": (1,)}
    with pytest.raises(BadInput, match=r"one stack of layers, the models have: a.layers., b.layers."):
        plan_tensors(recipe(), [{}], None, [shapes], sliced(((0, 0, 1),)))


def test_a_layout_follows_its_inputs_when_they_move() -> None:
    layout = sliced(((0, 0, 1), (1, 1, 2), (BASE, 0, 1)))
    assert layout.renumbered([1, 0]) == sliced(((1, 0, 1), (0, 1, 2), (BASE, 0, 1)))


# -- mergekit as the oracle

values = st.floats(-2, 2, allow_nan=False)
entries = st.lists(
    st.builds(
        Setting,
        value=st.one_of(values, st.lists(values, min_size=1, max_size=5).map(tuple)),
        filter=st.sampled_from([None, "mlp", "layers.1", "norm"]),
    ),
    min_size=1,
    max_size=3,
).map(tuple)


@settings(max_examples=300, deadline=None)
@given(
    scopes=st.lists(st.one_of(st.none(), entries), min_size=1, max_size=3),
    tensor=st.sampled_from(["model.layers.1.mlp.weight", "model.layers.2.norm.weight", "lm_head.weight"]),
    position=st.floats(0, 1),
)
def test_settings_mean_what_they_mean_to_mergekit(
    scopes: list[tuple[Setting, ...] | None], tensor: str, position: float
) -> None:
    config = pytest.importorskip("mergekit.config", reason="the oracle is an extra of its own")
    ours = resolve("x", [{} if scope is None else {"x": scope} for scope in scopes], tensor, position)
    theirs = None
    for scope in scopes:
        if scope is not None and theirs is None:
            held = config.OutputModuleDefinition(models=[{"model": "m"}], parameters=shorthand({"x": scope}))
            theirs = config.evaluate_setting(tensor, held.parameters["x"], position, validate=float)
    assert ours == theirs


def test_a_gradient_is_exact_at_its_ends_and_refuses_to_be_empty() -> None:
    assert value_at((0.1, 0.3, 0.7), 0.0) == 0.1 and value_at((0.1, 0.3, 0.7), 1.0) == 0.7
    with pytest.raises(BadInput, match="a gradient without numbers"):
        value_at((), 0.5)


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4, "intermediate_size": 4,
    "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": 5, "rms_norm_eps": 1e-6,
}  # fmt: skip
PARTS = (
    "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.up_proj", "mlp.gate_proj", "mlp.down_proj",
)  # fmt: skip

RECIPES = [
    """
merge_method: ties
base_model: base
models:
  - model: a
    parameters: {weight: [0, 1], density: [{filter: self_attn, value: 0.2}, {filter: mlp, value: [0.1, 0.9]}]}
  - model: b
    parameters: {weight: 1e-1}
parameters:
  density: 0.7
  lambda: [{filter: embed_tokens, value: 0.25}, {value: [0.5, 0.75, 1.5]}]
  normalize: yes
""",
    """
merge_method: slerp
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [0, 3]}
      - {model: a, layer_range: [1, 4]}
    parameters: {t: [{filter: mlp, value: [0, 1]}, {filter: lm_head, value: 0.9}]}
  - sources:
      - {model: base, layer_range: [3, 4]}
      - {model: a, layer_range: [0, 1]}
parameters:
  t: [{filter: self_attn, value: [0.5, 0.25]}, {value: 0.125}]
""",
    """
merge_method: della
base_model: base
slices:
  - sources:
      - {model: base, layer_range: [2, 4], parameters: {weight: 9}}
      - {model: a, layer_range: [0, 2], parameters: {weight: [{filter: layers.1, value: 7}, {filter: mlp, value: 2}]}}
      - {model: b, layer_range: [1, 3], parameters: {epsilon: 0.05}}
    parameters: {weight: 3, density: [0.4, 0.6]}
  - sources:
      - {model: base, layer_range: [0, 4]}
      - {model: b, layer_range: [0, 4]}
    parameters: {weight: 0.5}
parameters: {density: 0.5, rescale: false}
""",
    """
merge_method: linear
base_model: base
models:
  - {model: a}
  - {model: b, parameters: {weight: [{filter: norm, value: 0.5}, {value: 2}]}}
parameters: {weight: 1.5}
""",
    """
merge_method: linear
modules:
  default:
    parameters: {weight: [{filter: mlp, value: 2}]}
    models: [{model: a}, {model: b, parameters: {weight: 4}}]
parameters: {weight: [1, 3], normalize: false}
""",
    """
merge_method: model_stock
base_model: base
models: [{model: a}, {model: base}, {model: b}]
parameters: {filter_wise: [{filter: mlp, value: true}, {value: false}]}
""",
    "merge_method: nuslerp\nmodels: [{model: a}, {model: b, parameters: {weight: [1, 2]}}]\nparameters: {weight: 1}\n",
    "merge_method: breadcrumbs\nbase_model: base\nmodels: [{model: a}]\nparameters: {weight: 1, gamma: [0, 0.1]}\n",
    "merge_method: karcher\nbase_model: base\nmodels: [{model: a}]\nparameters: {max_iter: 20}\n",
    "merge_method: sce\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {select_topk: [0.1, 0.5]}\n",
]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shapes:
    """Three models of four layers in the current folder."""
    monkeypatch.chdir(tmp_path)
    names = [f"model.layers.{i}.{part}.weight" for i in range(4) for part in PARTS]
    names += ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for model in ("base", "a", "b"):
        Path(model).mkdir()
        (Path(model) / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 4}))
        save_file({name: np.zeros(2, np.float32) for name in names}, Path(model) / "model.safetensors")
    return {name: (2,) for name in names}


@pytest.mark.parametrize("text", RECIPES)
def test_mergekit_plans_the_same_sources_and_parameters(text: str, models: Shapes) -> None:
    pytest.importorskip("mergekit", reason="the oracle is an extra of its own")
    Path("recipe.yml").write_text(text)
    merge = load("recipe.yml")
    names = {BASE: merge.base, **{i: model.name for i, model in enumerate(merge.models)}}
    plans = plan_tensors(
        merge.recipe,
        [model.settings for model in merge.models],
        models if merge.base else None,
        [models] * len(merge.models),
        merge.layout,
    )
    base_takes_part = merge.base is not None and SIGNATURES[merge.recipe.method].base != "ignored"
    ours = {}
    for plan in plans:
        sources = {names[number]: name for number, name in plan.sources}
        own = {names[number]: dict(own) for (number, _), own in zip(plan.sources, plan.own, strict=True)}
        if base_takes_part:
            sources[merge.base], own[merge.base] = plan.base, {}
        ours[plan.name] = (sources, dict(plan.shared), own)
    assert ours == dict(mergekit_plan(text))


def mergekit_plan(text: str) -> Iterator[tuple[str, Any]]:
    import yaml
    from mergekit.architecture import get_architecture_info
    from mergekit.config import MergeConfiguration
    from mergekit.io.tasks import LoaderCache
    from mergekit.merge import _model_out_config
    from mergekit.options import MergeOptions
    from mergekit.plan import MergePlanner

    config, options = MergeConfiguration.model_validate(yaml.safe_load(text)), MergeOptions()
    architecture = get_architecture_info(config, options)
    LoaderCache().loaders.clear()
    LoaderCache().setup(options)
    planner = MergePlanner(config, architecture, options, _model_out_config(config, architecture))
    planner._plan()  # what its public methods do first
    for weight_info, task in planner._tensors:
        sources = {str(model): info.name for model, info in task.gather_tensors.weight_info.items()}
        shared = {name: value for name, value in task.parameters.items() if name != "int8_mask"}
        own = {str(model): dict(found.items()) for model, found in task.input_parameters.items()}
        yield weight_info.name, (sources, shared, own)


def test_our_table_of_methods_is_mergekits(models: Shapes) -> None:
    methods = pytest.importorskip("mergekit.merge_methods", reason="the oracle is an extra of its own")
    for name in ("linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear",
                 "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "slerp", "nuslerp", "multislerp",
                 "karcher"):  # fmt: skip
        spec, ours = methods.get(name).spec, SIGNATURES[name]
        for theirs, found in ((spec.shared_parameters, ours.shared), (spec.input_parameters, ours.own)):
            wanted = {p.name: None if p.required else p.default for p in theirs if p.name != "int8_mask"}
            assert {key: parameter.default for key, parameter in found.items()} == wanted, name
        for theirs in spec.parameters:
            if theirs.name != "int8_mask":
                kind = Parameter(default=ours.parameters[theirs.name].default)
                assert isinstance(kind.default, theirs.value_type) or kind.default is None, (name, theirs)
