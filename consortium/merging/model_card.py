"""What stands in the README.md of a merged model: from what, how, and how that compares with mergekit."""

from collections.abc import Sequence

import yaml

from consortium.harmless import harmless
from consortium.ids import Digest
from consortium.merging.recipes.export import dump
from consortium.merging.recipes.merge_file import MergeFile, MergeModel
from consortium.merging.recipes.settings import shorthand
from consortium.merging.recipes.signatures import SIGNATURES


def model_card(
    file: MergeFile, title: str, digest: Digest, compared: Sequence[str], done: Sequence[str]
) -> str:
    """Markdown with Hugging Face's metadata on top; the same text for the same merge.

    digest    of the weights
    compared  sentences, against mergekit
    done      sentences, what guards and robust methods did
    """
    base = f"The base is `{_code(file.base)}`. " if file.base else ""
    lines = [
        "---",
        "library_name: transformers",
        "tags: [merge, sprachbund]",
        "---",
        f"# {harmless(title)}",
        "",
        f"{len(file.models)} {'inputs' if len(file.models) > 1 else 'input'}, merged with `sprachbund merge` by method "
        f"`{file.recipe.method}` ({SIGNATURES[file.recipe.method].paper}). {base}The weights are {file.recipe.dtype}; "
        f"their digest is `{digest}`.",
        "",
        "| input | kind | settings |",
        "|---|---|---|",
        *(f"| `{_code(model.name)}` | {model.pin.kind} | {_settings(model)} |" for model in file.models),
        "",
        *(["## What was done to inputs", "", *(f"- {harmless(one)}" for one in done), ""] if done else []),
        "## Compared with mergekit 0.1.5",
        "",
        *(f"- {harmless(one)}" for one in compared),
        "",
        "## Recipe",
        "",
        "```yaml",
        dump(file).rstrip("\n"),
        "```",
        "",
    ]
    return "\n".join(lines)


def _settings(model: MergeModel) -> str:
    if not model.settings:
        return ""
    text = yaml.safe_dump(
        shorthand(model.settings), default_flow_style=True, width=10_000, sort_keys=False
    ).strip()
    return f"`{_code(text)}`"


def _code(text: str) -> str:
    """Text that cannot leave its code span or its cell."""
    return harmless(text).replace("`", "'").replace("|", "\\|")
