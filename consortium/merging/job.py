"""How a merge job is carried out: one function for the coordinator and for sites, so that both give the same bytes."""

from collections.abc import Callable
from pathlib import Path

from consortium.ids import Digest
from consortium.jobs import Merge
from consortium.manifests import Ingredient, VersionManifest
from consortium.merging.merge import MergeInput, Progress, merge
from consortium.merging.outer import state_names
from consortium.merging.recipe import Recipe
from consortium.versions import OUTER_STATE


def make_version(
    work: Merge,
    base_dir: Path,
    blob: Callable[[Digest], Path],
    out_dir: Path,
    threads: int = 2,
    progress: Progress | None = None,
) -> VersionManifest:
    """Merge in ``out_dir``, which becomes the model's folder with the outer state beside; returns its manifest.

    blob      where the file of a delta, or of the outer state, lies
    threads   changes speed, never bits
    progress  called with (elements done, elements in all); what it raises ends the merge
    Raises what ``merge`` raises; then, as after a kill, ``out_dir`` is not there.
    """
    inputs = [
        MergeInput(
            blob(part.delta.digest),
            part.delta,
            part.weight,
            cohort=part.cohort,
            row_counts=blob(part.row_counts.digest) if part.row_counts else None,
            row_counts_ref=part.row_counts,
        )
        for part in work.parts
    ]
    before = work.outer_state.get(OUTER_STATE)
    momentum = blob(before.digest) if before else None
    result = merge(base_dir, inputs, momentum, work.recipe, out_dir, threads=threads, progress=progress)
    return result.manifest_onto(work.base)


def outer_files(recipe: Recipe) -> set[str]:
    """Names of the files that the outer optimizer keeps beside a merged version."""
    return {OUTER_STATE} if state_names(recipe.outer) else set()


def ingredients_of(work: Merge) -> tuple[Ingredient, ...]:
    """What the manifest of the merged version must name."""
    return tuple(
        Ingredient(delta=part.delta, weight=part.weight, row_counts=part.row_counts) for part in work.parts
    )
