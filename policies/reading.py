"""How a campaign file becomes a Campaign: presets filled in, languages normalised, everything checked.

In the file, four things are written shorter than in the Campaign:

    merge, gate, admission   the name of a preset (a file in ``recipes``, ``gates`` and ``admission`` here),
                             or a mapping, which may start from one with ``preset: <name>``
    merge.parameters         as mergekit has them: ``0.5``, ``[0.2, 0.8]``, ``[{filter: mlp, value: 0.5}, ...]``
    model                    ``config:`` (a mapping), ``config_file:`` (a config.json) or ``directory:``
    tokenizer                ``train:`` (vocabulary_size, bytes_per_language) or ``file:`` (a tokenizer.json)

Paths are relative to the campaign file.
"""

import os
from pathlib import Path
from typing import Any

import msgspec

from consortium.canonical import Fact, decode, replace
from consortium.checking import Place
from consortium.errors import BadInput
from consortium.loading import Document, Problems, read, read_bytes
from consortium.merging.recipe import Recipe
from consortium.merging.recipes.settings import written_out
from policies.campaign import Admission, Campaign, Gate
from policies.consistency import notes_on, problems_in
from policies.languages import Languages, normalise_all
from policies.presets import filled_in, names_in, read_preset
from policies.ranges import Count, Natural, VocabularySize

PRESETS: dict[str, tuple[str, type]] = {
    "merge": ("recipes", Recipe),
    "gate": ("gates", Gate),
    "admission": ("admission", Admission),
}


class ModelInFile(Fact):
    """``model:`` of a campaign file; exactly one of the first three."""

    config: dict[str, Any] | None = None  #: of transformers, model_type included
    config_file: str | None = None  #: a Hugging Face config.json
    directory: str | None = None  #: a trained model in Hugging Face layout
    seed: Natural = 0  #: of the random weights, where only a config is given


class TokenizerToTrain(Fact):
    vocabulary_size: VocabularySize
    bytes_per_language: Count = 1_000_000


class TokenizerInFile(Fact):
    """``tokenizer:`` of a campaign file; exactly one of the two."""

    train: TokenizerToTrain | None = None
    file: str | None = None  #: a tokenizer.json


class CampaignFile(Fact):
    """What ``submit`` needs: the campaign, and the files that the store must have before it is complete."""

    campaign: Campaign
    model_directory: Path | None = None  #: upload it and set ``model.files``
    tokenizer_file: Path | None = None  #: upload it and set ``tokenizer.digest``
    notes: tuple[str, ...] = ()  #: allowed, and seldom meant; one ``file:line: ...`` each


def load_recipe(name: str) -> Recipe:
    return _preset("merge", name).convert(Recipe)


def load_gate(name: str) -> Gate:
    return _preset("gate", name).convert(Gate)


def load_admission(name: str) -> Admission:
    return _preset("admission", name).convert(Admission)


def preset_names(section: str) -> tuple[str, ...]:
    """What may stand after ``merge:``, ``gate:`` or ``admission:``."""
    return names_in(PRESETS[section][0])


def load_campaign(path: str | Path, languages: Languages | None = None) -> CampaignFile:
    """The campaign in the YAML file ``path``. Raises BadInput with every ``file:line`` that is wrong."""
    document = read(path)
    problems = Problems(document)
    plain = dict(document.value) if isinstance(document.value, dict) else document.value
    directory = config = tokenizer_file = None
    if isinstance(plain, dict):
        if "model" in plain:
            plain["model"], directory, config = _model(plain["model"], document, problems)
        if "tokenizer" in plain:
            plain["tokenizer"], tokenizer_file = _tokenizer(plain["tokenizer"], document, problems)
        elif directory is not None:
            plain["tokenizer"] = {}
            tokenizer_file = _existing(directory / "tokenizer.json", ("model",), problems)
        for section in sorted(PRESETS.keys() & plain.keys()):
            plain[section] = filled_in(PRESETS[section][0], section, plain[section], problems, _spelt_out)
    problems.check(plain, Campaign)
    problems.raise_if_any()

    campaign = msgspec.convert(plain, Campaign)
    campaign = replace(
        campaign,
        languages=normalise_all(campaign.languages, ("languages",), problems, languages),
        sites=tuple(sorted(campaign.sites)),
        merge_sites=tuple(sorted(campaign.merge_sites)),
        gate=replace(
            campaign.gate,
            protected=normalise_all(campaign.gate.protected, ("gate", "protected"), problems, languages),
        ),
    )
    problems.raise_if_any()
    for place, sentence in problems_in(campaign, config):
        problems.add(place, sentence)
    problems.raise_if_any()
    notes = tuple(document.worded(place, sentence) for place, sentence in notes_on(campaign))
    return CampaignFile(
        campaign=campaign, model_directory=directory, tokenizer_file=tokenizer_file, notes=notes
    )


def _preset(section: str, name: str) -> Document:
    document = read_preset(PRESETS[section][0], section, name)
    document.value = _spelt_out(document.value)
    return document


def _spelt_out(plain: dict[str, Any]) -> dict[str, Any]:
    """A recipe's parameters as the Recipe has them; of what is no recipe, nothing changes."""
    return {**plain, "parameters": written_out(plain["parameters"])} if "parameters" in plain else plain


def _model(
    value: Any, document: Document, problems: Problems
) -> tuple[dict[str, Any], Path | None, dict[str, Any] | None]:
    """``model:`` as the Campaign spells it, the directory to upload, and the config of either."""
    plain = _one_of(value, ModelInFile, ("config", "config_file", "directory"), ("model",), problems)
    seed = {"seed": plain["seed"]} if "seed" in plain else {}
    if "config" in plain:
        return {"config": plain["config"], **seed}, None, plain["config"]
    if "config_file" in plain:
        config = _config(Path(document.beside(plain["config_file"])), ("model", "config_file"), problems)
        return {"config": config, **seed}, None, config
    if "directory" not in plain:
        return {}, None, None
    directory = Path(document.beside(plain["directory"]))
    return seed, directory, _config(directory / "config.json", ("model", "directory"), problems)


def _tokenizer(value: Any, document: Document, problems: Problems) -> tuple[dict[str, Any], Path | None]:
    """``tokenizer:`` as the Campaign spells it, and the file to upload."""
    plain = _one_of(value, TokenizerInFile, ("train", "file"), ("tokenizer",), problems)
    if "file" in plain:
        return {}, _existing(Path(document.beside(plain["file"])), ("tokenizer", "file"), problems)
    return plain.get("train", {}), None


def _one_of(
    value: Any, kind: type, keys: tuple[str, ...], place: Place, problems: Problems
) -> dict[str, Any]:
    """``value`` without its nulls if it is a ``kind`` with exactly one of ``keys``; else an empty mapping."""
    if not problems.check(value, kind, place):
        return {}
    plain = {key: inner for key, inner in value.items() if inner is not None}
    given = [key for key in keys if key in plain]
    if len(given) != 1:
        said = " and ".join(given) if given else "none of them"
        problems.add(place, f"{said} given; write exactly one of: {', '.join(keys)}")
        return {}
    return plain


def _config(file: Path, place: Place, problems: Problems) -> dict[str, Any] | None:
    if _existing(file, place, problems) is None:
        return None
    try:
        return decode(read_bytes(file), dict[str, Any], str(file))
    except BadInput as error:
        problems.add(place, f"{error}; give a Hugging Face config.json")
        return None


def _existing(file: Path, place: Place, problems: Problems) -> Path | None:
    if not os.path.isfile(file):  # unlike Path.is_file, quiet about names that no filesystem takes
        problems.add(place, f"there is no file {file}; paths are relative to the campaign file")
        return None
    return file
