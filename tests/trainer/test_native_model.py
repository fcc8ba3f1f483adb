"""Our own module against transformers: the same bits, and each opens what the other wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_samples import train_work

from consortium.errors import BadInput
from consortium.jobs import Optimizer
from consortium.tensor_writer import CheckpointWriter
from site_agent.trainer import model as loading
from site_agent.trainer import rope
from site_agent.trainer.inner_optimizer import InnerOptimizer
from site_agent.trainer.model import Arrays, Model, load_model
from site_agent.trainer.shape import Shape, shape_of

CPU = torch.device("cpu")
STEPS, ROWS, TOKENS = 20, 3, 24
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # so that what attention does is seen
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
#: As the families have them, in small; where they differ from a plain Llama.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama 3": {
        "model_type": "llama",
        "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16},
        "tie_word_embeddings": True,
    },
    "EuroLLM": {"model_type": "llama", "rope_theta": 1e4, "tie_word_embeddings": False, "head_dim": 8},
    "Viking": {"model_type": "llama", "num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "Mistral": {"model_type": "mistral", "sliding_window": 4096, "rope_parameters": {"rope_theta": 1e6}},
    "Mistral, looking back less far": {"model_type": "mistral", "sliding_window": 7},
    "Mistral, as far as the text": {"model_type": "mistral", "sliding_window": TOKENS},
    "Qwen 2": {"model_type": "qwen2", "rope_theta": 1e6},
    "Qwen 3": {"model_type": "qwen3", "head_dim": 16, "tie_word_embeddings": True},
    "biases everywhere": {"model_type": "llama", "attention_bias": True, "mlp_bias": True},
    "a linear rope": {
        "model_type": "llama",
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0},
    },
    "YaRN": {"model_type": "llama", "rope_parameters": YARN},
}
#: What is left to transformers, and a word of the reason.
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "Gemma 2": ({"model_type": "gemma2", "head_dim": 8}, "gemma2"),
    "Gemma 3": ({"model_type": "gemma3_text", "head_dim": 8}, "gemma3_text"),
    "Poro": ({"model_type": "bloom", "n_layer": 2, "n_head": 4}, "bloom"),
    "a dynamic rope": (
        {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
        },
        "dynamic",
    ),
    "windows in some layers": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        "differently far",
    ),
}


def saved(folder: Path, changes: dict[str, Any]) -> Path:
    """A random model of transformers, as it saves it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(7)
    config = AutoConfig.for_model(**{**SMALL, "tie_word_embeddings": False, **changes})
    made = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in made.parameters():  # norms and biases begin as ones and zeros: errors would hide
            weight.add_(torch.randn_like(weight) * 0.1)
    made.save_pretrained(folder)
    return folder


def both(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Model, Model]:
    native = load_model(folder, CPU)
    monkeypatch.setattr(loading, "shape_of", lambda config: "for comparison")
    theirs = load_model(folder, CPU)
    assert native.backend == "native" and theirs.backend.startswith("transformers")
    return native, theirs


def rows(step: int) -> torch.Tensor:
    return torch.randint(
        0, SMALL["vocab_size"], (ROWS, TOKENS + 1), generator=torch.Generator().manual_seed(step)
    )


def asked(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What is read, and what is to be predicted."""
    return rows(step)[:, :-1], rows(step)[:, 1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_twenty_steps_are_the_same_bits(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native, theirs = both(saved(tmp_path / "model", FAMILIES[family]), monkeypatch)
    work = train_work(steps=STEPS, optimizer=Optimizer(learning_rate=1e-2, warmup_steps=3))
    steppers = [InnerOptimizer(model.weights, work) for model in (native, theirs)]
    for step in range(STEPS):
        losses = [model.objective(*asked(step)) for model in (native, theirs)]
        assert losses[0].item() == losses[1].item(), f"step {step}"
        for loss in losses:
            (loss / (ROWS * TOKENS)).backward()
        for name, weight in native.weights.items():
            other = theirs.weights[name]
            assert weight.grad is not None and other.grad is not None
            assert torch.equal(weight.grad, other.grad), f"gradient of {name} at step {step}"
        for stepper in steppers:
            assert stepper.step(step)
    assert all(torch.equal(weight, theirs.weights[name]) for name, weight in native.weights.items())
    assert torch.equal(native.logits(rows(0)), theirs.logits(rows(0)))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_opens_what_the_other_wrote(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    native = load_model(saved(tmp_path / "theirs", FAMILIES[family]), CPU)
    shapes = {name: tuple(weight.shape) for name, weight in native.weights.items()}
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_bytes((tmp_path / "theirs/config.json").read_bytes())
    with CheckpointWriter(tmp_path / "ours", shapes, "F32", 1 << 20) as writer:
        for name, values in Arrays(native.weights).items():
            writer.write(name, 0, values.reshape(-1))
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    ids = rows(1)
    assert torch.equal(theirs(input_ids=ids, use_cache=False).logits.float(), native.logits(ids))


@pytest.mark.parametrize("family", OTHERS)
def test_what_is_left_to_transformers_is_trained_and_the_reason_told(
    family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, why = OTHERS[family]
    model = load_model(saved(tmp_path / "model", changes), CPU)
    assert model.backend.startswith("transformers")
    assert why in capsys.readouterr().err
    stepper = InnerOptimizer(model.weights, train_work(steps=3))
    losses = []
    for step in range(3):
        loss = model.objective(*asked(0))
        (loss / (ROWS * TOKENS)).backward()
        assert stepper.step(step)
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_dropout": 0.1}, "attention_dropout is 0.1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"rope_scaling": {"type": "longrope"}}, "rope_type is 'longrope'"),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            "a llama3 rope without low_freq_factor",
        ),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"rms_norm_eps": ...}, "rms_norm_eps is left out"),
        ({"model_type": "qwen3"}, "head_dim is left out"),
    ],
)
def test_what_changes_the_mathematics_is_never_guessed(change: dict[str, Any], why: str) -> None:
    plain = {"model_type": "llama", "rms_norm_eps": 1e-6, "tie_word_embeddings": False, **SMALL}
    assert isinstance(shape_of(plain), Shape)
    asked = {key: value for key, value in {**plain, **change}.items() if value is not ...}
    told = shape_of(asked)
    assert isinstance(told, str) and why in told


def test_turns_of_long_texts_are_those_of_transformers() -> None:
    """At sizes at which every branch of the rules has some dimensions."""
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    sizes = {"hidden_size": 512, "num_attention_heads": 4, "max_position_embeddings": 131072}
    for rules in (
        {**LLAMA3, "original_max_position_embeddings": 8192},
        {**YARN, "original_max_position_embeddings": 4096, "rope_theta": 1e6},
        {**YARN, "original_max_position_embeddings": 4096, "attention_factor": 1.5, "beta_fast": 16.0},
        {**YARN, "original_max_position_embeddings": 4096, "truncate": False},
    ):
        config = AutoConfig.for_model("llama", **sizes, rope_parameters=dict(rules))
        steps_F, scale = ROPE_INIT_FUNCTIONS[rules["rope_type"]](config, None)
        angles_SK = torch.outer(torch.arange(300).float(), steps_F).repeat(1, 2)
        shape = shape_of(json.loads(config.to_json_string(use_diff=False)))
        assert isinstance(shape, Shape)
        cos_SK, sin_SK = rope.turns(shape.rope, 128, 300)
        assert torch.equal(cos_SK, angles_SK.cos() * scale) and torch.equal(sin_SK, angles_SK.sin() * scale)


def test_a_tensor_too_many_is_named(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", {"model_type": "llama", "attention_bias": True})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": False}))
    with pytest.raises(BadInput, match=r"k_proj\.bias' is not a weight of the model"):
        load_model(folder, CPU)
