"""Models made from a config and a seed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_samples import CONFIG, sha256

from consortium import models
from consortium.errors import BadInput
from consortium.models import initialise, main
from consortium.plain_llama import plain_llama


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


def test_transformers_loads_and_generates(base: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    asked = tokenizer("tere õhtust", return_tensors="pt")
    made = model.generate(
        asked["input_ids"], attention_mask=asked["attention_mask"], max_new_tokens=4, do_sample=False
    )
    assert made.shape[1] == asked["input_ids"].shape[1] + 4
    assert tokenizer.decode(asked["input_ids"][0]) == "tere õhtust"
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|endoftext|>", "<|pad|>", 320)
    assert (model.config.eos_token_id, model.config.pad_token_id, model.config.vocab_size) == (0, 1, 320)


def test_the_bytes_depend_on_config_seed_and_tokenizer_alone(
    tmp_path: Path, base: Path, tokenizer_json: Path
) -> None:
    """In another process, through the program that the coordinator starts."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    arguments = ["--config", str(tmp_path / "config.json"), "--seed", "3", "--tokenizer", str(tokenizer_json)]
    out = ["--out", str(tmp_path / "3"), "--shard-bytes", str(1 << 30)]
    subprocess.run([sys.executable, "-m", "consortium.models", *arguments, *out], check=True)
    assert _digests(tmp_path / "3") == _digests(base)
    initialise(CONFIG, 4, tokenizer_json, tmp_path / "4")
    assert _digests(tmp_path / "4")["model.safetensors"] != _digests(base)["model.safetensors"]
    assert sha256(base / "tokenizer.json") == sha256(tokenizer_json)
    assert "transformers_version" not in (base / "config.json").read_text()


PLAIN: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 24,
    "intermediate_size": 31,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
SMALLEST = {"hidden_size": 2, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "architectures": ["LlamaForCausalLM"]},
        {
            "rope_parameters": {"rope_theta": 500000.0},
            "rms_norm_eps": 1e-05,
            "vocab_size": 333,
            "pad_token_id": 332,
        },
        {
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
            "initializer_range": 0.5,
            "eos_token_id": 7,
        },
        SMALLEST | {"max_position_embeddings": 77, "bos_token_id": 3},
    ],
)
def test_a_plain_llama_has_the_bytes_that_transformers_gives_it(
    tmp_path: Path, tokenizer_json: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """More than one draw of less than 16 numbers, where PyTorch draws in pairs, among them."""
    initialise(PLAIN | changes, 11, tokenizer_json, tmp_path / "drawn")
    monkeypatch.setattr(models, "plain_llama", lambda config: None)
    initialise(PLAIN | changes, 11, tokenizer_json, tmp_path / "by transformers")
    assert _digests(tmp_path / "drawn") == _digests(tmp_path / "by transformers")


def test_transformers_is_asked_for_what_is_not_plain() -> None:
    filled = PLAIN | {"vocab_size": 320, "eos_token_id": 0, "bos_token_id": 0, "pad_token_id": 1}
    assert plain_llama(filled) is not None
    for change in (
        {"model_type": "qwen3"},
        {"attention_bias": True},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
        {"rms_norm_eps": 1},
        {"hidden_size": 25},
        {"hidden_size": 26},
        {"num_key_value_heads": 3},
        {"pad_token_id": 320},
        {"architectures": ["LlamaModel"]},
        {"hidden_size": True},
    ):
        assert plain_llama(filled | change) is None, change


def test_shards_hold_what_they_may(tmp_path: Path, tokenizer_json: Path) -> None:
    from transformers import AutoModelForCausalLM

    initialise(CONFIG, 3, tokenizer_json, tmp_path / "model", shard_bytes=50_000)
    shards = sorted(tmp_path.glob("model/*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 50_000 + 4000 for path in shards)
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").num_parameters() > 20_000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": None}, "needs `model_type`"),
        ({"model_type": "nonsense"}, "transformers cannot make it"),
        ({"hidden_size": "wide"}, "transformers cannot make it"),
        ({"hidden_size": 30, "num_attention_heads": 4}, "transformers cannot make it"),
        ({"model_type": "t5"}, "transformers cannot make it"),
        ({"vocab_size": 319}, "vocab_size 319 is less than the tokenizer's 320"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(
    tmp_path: Path, tokenizer_json: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        initialise(CONFIG | changes, 0, tokenizer_json, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_without_an_end_needs_it_in_the_config(tmp_path: Path, tokenizer_json: Path) -> None:
    words = tokenizer_json.read_text(encoding="utf-8").replace("<|endoftext|>", "<<end>>")
    (tmp_path / "tokenizer.json").write_text(words, encoding="utf-8")
    with pytest.raises(BadInput, match="write `eos_token_id`"):
        initialise(CONFIG, 0, tmp_path / "tokenizer.json", tmp_path / "model")
    initialise(CONFIG | {"eos_token_id": 0}, 0, tmp_path / "tokenizer.json", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<<end>>"


def test_the_program_says_what_is_wrong_in_one_sentence(
    tmp_path: Path, tokenizer_json: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = ["--config", str(tmp_path / "config.json"), "--tokenizer", str(tokenizer_json)]
    assert main([*arguments, "--out", str(tmp_path / "model")]) == 2
    assert "needs `model_type`" in capsys.readouterr().err
