"""Whether models are those that a recipe pins, and whether their tokenizers mean the same by every number."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from consortium.errors import Corrupt, Refused
from consortium.files import disk_errors
from consortium.ids import Digest
from consortium.merging.checksums import checksums_of
from consortium.store import ref_of

_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")
#: of tokenizer.json: what decides which number a text becomes; padding and truncation do not
_MEANING = ("model", "added_tokens", "normalizer", "pre_tokenizer")


def require_weights(name: str, folder: Path, pinned: Digest, threads: int = 2) -> None:
    """Raise Corrupt unless the weights of a model have the digest that the recipe pins."""
    found = checksums_of(folder, threads).digest
    if found != pinned:
        raise Corrupt(
            f"model {name}: its weights have digest {found}, the recipe pins {pinned}; fetch the model that was "
            "meant, or change the pin"
        )


def require_one_tokenizer(folders: Mapping[str, Path]) -> tuple[str, ...]:
    """Raise Refused if two models number their tokens differently; returns what could not be compared.

    folders  name in the recipe -> model folder
    """
    notes = []
    known: dict[str, tuple[str, Path]] = {}  # file -> the first model that has it
    for name, folder in folders.items():
        files = [file for file in _VOCABULARIES if (folder / file).is_file()]
        common = [file for file in files if file in known]
        if not files or (known and not common):
            notes.append(
                f"{name}: no tokenizer file to compare with the others'; that it is theirs is taken on trust"
            )
        for file in common[:1]:
            first, place = known[file]
            if not _same(place / file, folder / file):
                raise Refused(
                    f"{first} and {name} have different tokenizers ({file}), so that rows of their embeddings mean "
                    "different tokens; merge models of one tokenizer, or bring them to one first (mergekit's "
                    "tokenizer_source or tokensurgeon) and merge what comes out"
                )
        for file in files:
            known.setdefault(file, (name, folder))
    return tuple(notes)


def _same(left: Path, right: Path) -> bool:
    if ref_of(left) == ref_of(right):
        return True
    return left.suffix == ".json" and _meaning(left) == _meaning(right)


def _meaning(path: Path) -> Any:
    with disk_errors(path):
        text = path.read_bytes()
    try:
        plain = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"{path}: {error}; fetch the model again") from error
    if path.name == "tokenizer.json" and isinstance(plain, dict):
        return [plain.get(key) for key in _MEANING]
    return plain
