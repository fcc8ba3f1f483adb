"""How fast each tensor of a model learns: 1, slower, or not at all, by the groups of an order.

The words are those of ``consortium.merging.report``: what an inspection of contributions shows as a group can be
frozen by the same name.
"""

import fnmatch
from collections.abc import Iterable, Sequence

from consortium.errors import BadInput
from consortium.jobs import LayerGroup
from consortium.merging.layers import layer_of
from consortium.merging.report import EMBEDDINGS, REST, layer_groups

_THIRDS = ("first third", "middle third", "last third")


def factors_of(names: Iterable[str], groups: Sequence[LayerGroup]) -> dict[str, float]:
    """Tensor -> what its learning rate is multiplied by; of the groups that it is in, the first counts.

    Raises BadInput for a group that no tensor is in, and if nothing is left to learn.
    """
    words = _words(sorted(names))
    every = sorted(name for members in words.values() for name in members)
    factors: dict[str, float] = {}
    for group in groups:
        members = words.get(group.match)
        if members is None:
            members = fnmatch.filter(every, group.match)
        if not members:
            raise BadInput(
                f"groups: {group.match!r} fits no tensor of the model; write {', '.join(words)}, or the name of a "
                f"tensor, such as {every[0]}, with * for what may differ"
            )
        for name in members:
            factors.setdefault(name, group.learning_rate_factor)
    found = {name: factors.get(name, 1.0) for name in every}
    if not any(found.values()):
        raise BadInput("groups: nothing is left to learn; give a group a learning_rate_factor above 0")
    return found


def _words(names: Sequence[str]) -> dict[str, list[str]]:
    """Every word for tensors, with those that it means."""
    groups = layer_groups(names)
    numbers = sorted({layer.number for name in names if (layer := layer_of(name))})
    words = {EMBEDDINGS: groups.get(EMBEDDINGS, [])}
    for part, word in enumerate(_THIRDS):
        span = set(numbers[len(numbers) * part // 3 : len(numbers) * (part + 1) // 3])
        words[word] = [name for name in names if (layer := layer_of(name)) and layer.number in span]
    return words | {REST: groups.get(REST, [])}
