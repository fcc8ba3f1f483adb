"""How a base model is made from nothing: a config, a seed and a tokenizer give the same bytes every time.

Run it in a process of its own, because it imports torch, and transformers for all but a plain Llama:
``python -m consortium.models --config CONFIG.json --seed N --tokenizer tokenizer.json --out FOLDER``
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from consortium.byte_level import END_OF_TEXT, PADDING
from consortium.errors import BadInput, SprachbundError
from consortium.files import sync_file, write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.plain_llama import configs_of, plain_llama, write_plain_llama

# What given tokenizers call them, the likeliest first.
_NAMES = {
    "eos_token": (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>"),
    "bos_token": (END_OF_TEXT, "<s>", "<|begin_of_text|>", "<bos>"),
    "pad_token": (PADDING, "<pad>", "<|finetune_right_pad_id|>"),
}


def initialise(
    config: Mapping[str, Any],
    seed: int,
    tokenizer_json: Path,
    out_dir: Path,
    shard_bytes: int = 1 << 30,
) -> None:
    """Make ``out_dir`` a new model in Hugging Face layout: random float32 weights, config and tokenizer.

    config       of transformers, with ``model_type``; ``vocab_size`` and the ids of EOS, BOS and padding come
                 from the tokenizer where the config does not give them
    shard_bytes  of one safetensors file
    Raises BadInput if transformers cannot make the model, if tokenizer and config do not fit each other, and
    if ``out_dir`` exists.
    """
    vocabulary = _vocabulary(tokenizer_json)
    filled = _filled(config, vocabulary)
    model = plain_llama(filled)
    with fresh_folder(out_dir) as folder:
        if model is not None and model.num_bytes <= shard_bytes:
            configs, longest = configs_of(model), model.max_position_embeddings
            write_plain_llama(model, seed, folder)
        else:
            configs, longest = _by_transformers(filled, seed, shard_bytes, folder)
        for name, content in configs.items():
            _write_json(folder / name, content)
        write_bytes_atomically(folder / "tokenizer.json", tokenizer_json.read_bytes())
        _write_json(folder / "tokenizer_config.json", _tokenizer_config(filled, vocabulary, longest))


def _by_transformers(
    filled: Mapping[str, Any], seed: int, shard_bytes: int, folder: Path
) -> tuple[dict[str, dict[str, Any]], int]:
    """Weights of any model in ``folder``, synced; its other files' content, and its longest sequence."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)  # more would draw the random numbers in another order
    torch.manual_seed(seed)
    try:
        full = AutoConfig.for_model(**filled)
        model = AutoModelForCausalLM.from_config(full, dtype=torch.float32, trust_remote_code=False)
    except Exception as error:  # what it raises for a config that makes no sense is of any class
        raise BadInput(f"config of the model: transformers cannot make it: {error}") from error
    model.save_pretrained(folder, max_shard_size=shard_bytes)
    for path in sorted(folder.glob("*.safetensors*")):
        sync_file(path)
    configs = {}
    for name in ("config.json", "generation_config.json"):
        configs[name] = json.loads((folder / name).read_bytes())
        configs[name].pop(
            "transformers_version", None
        )  # an update must not give the same weights another digest
    return configs, getattr(full, "max_position_embeddings", 1 << 30)


def _vocabulary(tokenizer_json: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    try:
        found: dict[str, int] = Tokenizer.from_file(str(tokenizer_json)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the only class that the Rust library raises
        raise BadInput(f"{tokenizer_json}: not a tokenizer.json: {error}") from error
    return found


def end_of_document(vocabulary: Mapping[str, int]) -> int | None:
    """The token that ends a document, by the names that tokenizers give it; None if it has none of them."""
    known = _first_known(_NAMES["eos_token"], vocabulary)
    return None if known is None else vocabulary[known]


def _filled(config: Mapping[str, Any], vocabulary: Mapping[str, int]) -> dict[str, Any]:
    """The config with what the tokenizer decides."""
    if not isinstance(config.get("model_type"), str):
        raise BadInput('config of the model: needs `model_type`, such as "llama"')
    size = max(vocabulary.values()) + 1
    filled = {"vocab_size": size, **config}
    if filled["vocab_size"] < size:
        raise BadInput(
            f"config of the model: vocab_size {filled['vocab_size']} is less than the tokenizer's {size}; "
            "leave it out, it will be filled in"
        )
    for kind, names in _NAMES.items():
        known = _first_known(names, vocabulary)
        if known is not None and filled.get(f"{kind}_id") is None:
            filled[f"{kind}_id"] = vocabulary[known]
    if filled.get("eos_token_id") is None:
        raise BadInput(
            f"config of the model: the tokenizer has none of {', '.join(_NAMES['eos_token'])}; "
            "write `eos_token_id`, the token that ends a document"
        )
    return filled


def _tokenizer_config(
    filled: Mapping[str, Any], vocabulary: Mapping[str, int], longest: int
) -> dict[str, Any]:
    """What AutoTokenizer needs beside tokenizer.json."""
    spelling = {number: token for token, number in vocabulary.items()}
    specials = {kind: spelling.get(filled.get(f"{kind}_id", -1)) for kind in _NAMES}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": longest,
        **{kind: token for kind, token in specials.items() if token is not None},
    }


def _first_known(names: Iterable[str], vocabulary: Mapping[str, int]) -> str | None:
    return next((name for name in names if name in vocabulary), None)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_bytes_atomically(path, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m consortium.models", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="JSON file, as transformers writes it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--shard-bytes", type=int, default=1 << 30)
    given = parser.parse_args(arguments)
    try:
        config = json.loads(given.config.read_bytes())
        initialise(config, given.seed, given.tokenizer, given.out, given.shard_bytes)
    except (SprachbundError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, SprachbundError) else BadInput.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
