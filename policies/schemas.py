"""What editors need to complete our YAML files: JSON Schemas of every file a person writes.

``python -m policies.schemas policies/schemas`` writes the committed ones, and a test compares.
"""

import json
import pkgutil
import sys
from pathlib import Path
from typing import Any

import msgspec

from policies.campaign import Campaign
from policies.reading import PRESETS, ModelInFile, TokenizerInFile, preset_names
from policies.site_profile import profile_names

DIALECT = "https://json-schema.org/draft/2020-12/schema"

#: Schema -> where its type is. By name, because some of the types belong to rooms above this one.
KINDS = {
    "admission": "policies.campaign:Admission",
    "campaign": "policies.campaign:Campaign",
    "coordinator": "coordinator.config:CoordinatorConfig",
    "gate": "policies.campaign:Gate",
    "languages": "policies.languages:Languages",
    "licences": "policies.licences:Licences",
    "membership": "policies.membership:Membership",
    "recipe": "consortium.merging.recipe:Recipe",
    "site": "site_agent.config:SiteConfig",
    "simulation": "simulation.plan:PlanInFile",
    "site-profile": "policies.site_profile:SiteProfile",
}


#: What may stand for the settings of a merge method's parameter; see consortium/merging/recipes/settings.py.
_ENTRY = {"$ref": "#/$defs/Setting"}
_SHORTHAND = {
    "anyOf": [
        {"type": ["boolean", "number"]},
        {"type": "array", "items": {"type": "number"}, "minItems": 1},
        {"type": "array", "items": _ENTRY, "minItems": 1},
        _ENTRY,
    ]
}


def schema_of(name: str) -> dict[str, Any]:
    """The JSON Schema of one of ``KINDS``, as its file is written."""
    kind = pkgutil.resolve_name(KINDS[name])
    extra = {"model": ModelInFile, "tokenizer": TokenizerInFile} if name == "campaign" else {}
    (root, *inner), components = msgspec.json.schema_components(
        [kind, *extra.values()], ref_template="#/$defs/{name}"
    )
    if name == "campaign":
        _as_written(components[kind.__name__], components, dict(zip(extra, inner, strict=True)))
    if name == "site":
        _may_be_a_preset(components, kind.__name__, "slurm", "SiteProfile", profile_names())
    if "Recipe" in components:
        components["Recipe"]["properties"]["parameters"]["additionalProperties"] = _SHORTHAND
    for component in components.values():
        if "properties" in component:
            component["additionalProperties"] = False
    return {"$schema": DIALECT, **root, "$defs": components}


def _as_written(campaign: dict[str, Any], components: dict[str, Any], sources: dict[str, Any]) -> None:
    """A campaign file says some things shorter than the Campaign that it becomes; see reading.py."""
    properties = campaign["properties"]
    properties.update(sources)
    campaign["required"] = [
        key for key in campaign["required"] if key != "tokenizer"
    ]  # a model's directory has one
    for section, (_, kind) in PRESETS.items():
        _may_be_a_preset(components, Campaign.__name__, section, kind.__name__, preset_names(section))
    for unwritten in ("FileRef", "ModelSource", "TokenizerSource"):
        del components[unwritten]


def _may_be_a_preset(
    components: dict[str, Any], owner: str, section: str, kind: str, names: tuple[str, ...]
) -> None:
    """Where a file takes a preset: its name, or a mapping that may start from one."""
    name = {"enum": list(names)}
    components[kind]["properties"]["preset"] = name
    components[owner]["properties"][section] = {"anyOf": [name, {"$ref": f"#/$defs/{kind}"}]}


def text_of(name: str) -> str:
    return json.dumps(schema_of(name), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main(directory: str) -> None:
    for name in sorted(KINDS):
        (Path(directory) / f"{name}.json").write_text(text_of(name), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
