"""How one call, or one command, carries out a recipe file: models found, checked, merged, and described."""

import contextlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consortium.canonical import Fact, replace
from consortium.errors import BadInput
from consortium.files import write_bytes_atomically
from consortium.folders import fresh_folder
from consortium.manifests import FileRef
from consortium.merging.merge import MergeInput, MergeResult, Progress, merge
from consortium.merging.model_card import model_card
from consortium.merging.operands import open_operands
from consortium.merging.plan import plan_tensors
from consortium.merging.recipes.export import dump
from consortium.merging.recipes.files import load_noted
from consortium.merging.recipes.merge_file import MergeFile, MergeModel
from consortium.merging.recipes.model_places import find_model
from consortium.merging.recipes.notes import differences
from consortium.merging.recipes.pins import require_one_tokenizer, require_weights
from consortium.merging.recipes.signatures import SIGNATURES, members_min
from consortium.tensor_writer import COMPANIONS, copy_companions, plan_shards
from consortium.tensors import WIDTH, Checkpoint, DType

RECIPE_FILE = "mergekit_config.yml"  #: beside the merged model, as mergekit calls it
MODEL_CARD = "README.md"

_OF_THE_MODEL = {"config.json", "generation_config.json"}  #: companions that are no part of the tokenizer
_STORED: dict[str, DType] = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A recipe whose models were found and may be merged with each other."""

    file: MergeFile  #: with the seed and sizes that were asked for
    base: Path | None
    inputs: tuple[MergeInput, ...]  #: as listed
    companions: Path  #: whose config and tokenizer the result takes
    chat_template: str | None  #: rather than theirs
    notes: tuple[str, ...]  #: what a person should know before

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.file.models)

    @property
    def input_bytes(self) -> int:
        """Of all weights that will be read."""
        places = [one.path for one in self.inputs] + ([self.base] if self.base else [])
        files = [
            path for place in places for path in (place.glob("*.safetensors") if place.is_dir() else [place])
        ]
        return sum(path.stat().st_size for path in files)


def merge_recipe(
    recipe: str | Path | MergeFile,
    out_dir: str | Path,
    *,
    models_dirs: Sequence[str | Path] = (),
    threads: int = 2,
    seed: int | None = None,
    shard_elements: int | None = None,
    copy_tokenizer: bool = True,
    card: bool = True,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge as a recipe says, and write the Hugging Face folder ``out_dir``: ``ready``, then ``carry_out``."""
    work = ready(recipe, models_dirs, seed=seed, shard_elements=shard_elements)
    return carry_out(
        work, out_dir, threads=threads, copy_tokenizer=copy_tokenizer, card=card, progress=progress
    )


def ready(
    recipe: str | Path | MergeFile,
    models_dirs: Sequence[str | Path] = (),
    *,
    seed: int | None = None,
    shard_elements: int | None = None,
) -> Ready:
    """Read a recipe, find its models and check what can be checked without reading weights.

    recipe          a YAML file, mergekit's or ours, or what ``recipes.files.load`` made of one
    models_dirs     folders in which the models that it names lie; a path in a recipe is relative to it
    seed            rather than the recipe's
    shard_elements  parameters in one file of the output, rather than the recipe's bytes
    Raises BadInput (recipe, models that are not there), Refused (tokenizers that differ), Corrupt (not what a
    pin says).
    """
    if isinstance(recipe, MergeFile):
        file, notes, beside = recipe, tuple(sentence for _, sentence in differences(recipe)), Path()
    else:
        file, notes = load_noted(recipe)
        beside = Path(recipe).parent
    folders = [Path(folder) for folder in models_dirs]

    def folder_of(name: str) -> Path:
        return find_model(name, beside, folders)

    inputs = tuple(_input(model, beside, folders) for model in file.models)
    base = folder_of(file.base) if file.base else None
    companions = base or (folder_of(file.config_from) if file.config_from else inputs[0].path)
    models = {
        model.name: one.path for model, one in zip(file.models, inputs, strict=True) if one.path.is_dir()
    }
    if file.base and base:
        models = {file.base: base, **models}
    sources = {
        name: folder_of(name) for name in (file.tokenizer_source,) if name not in (None, "base", "union")
    }
    unsure = require_one_tokenizer({**models, **sources})
    for model in file.models:
        if model.pin.kind == "model" and model.pin.digest:
            require_weights(model.name, models[model.name], model.pin.digest)
    if file.base_digest and file.base and base:
        require_weights(file.base, base, file.base_digest)
    changed = replace(file.recipe, dtype=file.output_dtype or _dtype_of(companions))
    if seed is not None:
        changed = replace(changed, seed=seed)
    if shard_elements is not None:
        changed = replace(changed, shard_bytes=shard_elements * WIDTH[_STORED[changed.dtype]])
    return Ready(
        file=replace(file, recipe=changed),
        base=base,
        inputs=inputs,
        companions=companions,
        chat_template=_chat_template(file),
        notes=(*notes, *unsure, *_robust_notes(file), *_unheeded(file)),
    )


def carry_out(
    work: Ready,
    out_dir: str | Path,
    *,
    threads: int = 2,
    copy_tokenizer: bool = True,
    card: bool = True,
    outer_state: Path | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge and write ``out_dir``: the model, its companions, the recipe as it was run, and a model card.

    card         write README.md
    outer_state  ``outer.safetensors`` of the merge that made the base; None: start from zero
    progress     called with (elements done, elements in all), from the calling thread
    Raises what ``merge`` raises; then, as after a kill, ``out_dir`` is not there.
    """
    out_dir, recipe, layout = Path(out_dir), work.file.recipe, work.file.layout
    with fresh_folder(out_dir) as folder:
        inner = folder / "model"
        result = merge(
            work.base,
            work.inputs,
            outer_state,
            recipe,
            inner,
            threads=threads,
            progress=progress,
            layout=layout,
            hash_files=False,
        )
        for path in sorted(inner.iterdir()):
            os.replace(path, folder / path.name)
        inner.rmdir()
        if (
            work.base is None
        ):  # of several equals the merge took the first by content, the recipe says by name
            _remove(folder, set(COMPANIONS))
            num_layers = layout.num_layers if layout else None
            copy_companions(work.companions, folder, _STORED[recipe.dtype], num_layers)
        if not copy_tokenizer:
            _remove(folder, set(COMPANIONS) - _OF_THE_MODEL)
        elif work.chat_template:
            write_bytes_atomically(folder / "chat_template.jinja", work.chat_template.encode())
        write_bytes_atomically(folder / RECIPE_FILE, dump(work.file).encode())
        if card:
            text = model_card(
                work.file, out_dir.name, result.checksums.digest, compared(work.file), result.notes
            )
            write_bytes_atomically(folder / MODEL_CARD, text.encode())
    return result


def compared(file: MergeFile) -> tuple[str, ...]:
    """How the result compares with mergekit's, in sentences."""
    return tuple(sentence for _, sentence in differences(file)) or ("the same up to rounding",)


class Check(Fact):
    """What a merge would do."""

    method: str
    base: str | None
    inputs: tuple[str, ...]
    tensors: int
    parameters: int
    dtype: str
    files: int  #: of weights
    bytes: int  #: of weights
    notes: tuple[str, ...]


def check_recipe(work: Ready) -> Check:
    """Plan the merge, reading headers only. Raises BadInput and Refused as the merge does before it starts."""
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(Checkpoint(work.base)) if work.base else None
        by_given = {id(operand.given): operand for operand in open_operands(work.inputs, stack)}
        plans = plan_tensors(
            work.file.recipe,
            [given.settings for given in work.inputs],
            base.shapes if base else None,
            [by_given[id(given)].tensors.shapes for given in work.inputs],
            work.file.layout,
            work.names,
        )
    shapes = {plan.name: plan.shape for plan in plans}
    recipe, stored = work.file.recipe, _STORED[work.file.recipe.dtype]
    count = sum(math.prod(shape) for shape in shapes.values())
    return Check(
        method=recipe.method,
        base=work.file.base,
        inputs=work.names,
        tensors=len(plans),
        parameters=count,
        dtype=recipe.dtype,
        files=len(plan_shards(shapes, stored, recipe.shard_bytes)),
        bytes=count * WIDTH[stored],
        notes=work.notes,
    )


def _input(model: MergeModel, beside: Path, folders: Sequence[Path]) -> MergeInput:
    pin, is_delta = model.pin, model.pin.kind == "delta"
    path = find_model(model.name, beside, folders, file=is_delta)
    ref = None
    if is_delta and pin.digest:
        ref = FileRef(digest=pin.digest, size=path.stat().st_size if pin.size is None else pin.size)
    return MergeInput(
        path=path,
        ref=ref,
        weight=pin.tokens,
        settings=model.settings,
        cohort="+".join(pin.languages),
        row_counts=find_model(pin.row_counts, beside, folders, file=True) if pin.row_counts else None,
    )


def _dtype_of(folder: Path) -> str:
    """What a model's weights are stored as; float32 if that is not one thing."""
    with Checkpoint(folder) as model:
        found = {info.dtype for info in model.values()}
    return next((name for name, stored in _STORED.items() if found == {stored}), "float32")


def _chat_template(file: MergeFile) -> str | None:
    """The template that the recipe writes out; None: that of the companions."""
    if file.chat_template in (None, "auto"):
        return None
    if "{" not in file.chat_template:
        raise BadInput(
            f"chat_template {file.chat_template!r} is the name of one that mergekit has; write the template itself "
            "(Jinja), or `auto` for the base's"
        )
    return file.chat_template


def _robust_notes(file: MergeFile) -> list[str]:
    """What a robust method will do to those who are few."""
    recipe = file.recipe
    if not SIGNATURES[recipe.method].robust:
        return []
    cohorts: dict[str, list[str]] = {}
    for model in file.models:
        cohort = "+".join(model.pin.languages) if recipe.cohorts == "languages" else ""
        cohorts.setdefault(cohort, []).append(model.name)
    shared = {name: entries[-1].value for name, entries in recipe.parameters.items() if entries}
    needed = members_min(recipe.method, {k: v for k, v in shared.items() if not isinstance(v, tuple)})
    notes = [
        f"cohort {cohort or 'of all'}: {len(names)} of the {needed} inputs with which {recipe.method} does what it "
        "promises"
        for cohort, names in sorted(cohorts.items())
        if len(names) < needed
    ]
    if recipe.cohorts == "all" and len({model.pin.languages for model in file.models}) > 1:
        notes.append(
            f"{recipe.method} compares inputs of different languages and deletes what only one of them knows; "
            "`cohorts: languages` compares like with like"
        )
    return notes


def _unheeded(file: MergeFile) -> list[str]:
    return [f"gate {file.gate} is not judged here: it takes a campaign's held-out text"] if file.gate else []


def _remove(folder: Path, names: set[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
