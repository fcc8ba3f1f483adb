"""What a recipe's inputs are like, from one reading of their weights; nothing is written."""

from consortium.merging.gram import gram_pass
from consortium.merging.merge import Progress
from consortium.merging.report import Inspection, inspect
from consortium.merging.run import Ready, check_recipe


def inspect_recipe(
    work: Ready, threads: int = 2, by_layer: bool = False, progress: Progress | None = None
) -> Inspection:
    """Norms, cosines and conflict of the inputs: of their deltas if the recipe has a base, else of their weights.

    progress  called with (elements done, elements in all)
    Raises BadInput and Corrupt as a merge of the same recipe does.
    """
    check_recipe(work)
    seen = gram_pass(work.base, work.inputs, threads, progress, work.file.layout)
    return inspect(work.names, work.file.base, seen.grams, seen.sizes, seen.base_squares, by_layer)
