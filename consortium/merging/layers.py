"""Which tensors of the inputs make each tensor of the output, and where in the stack of layers it stands.

A layer's number is read off a tensor's name: the first whole number after a component such as ``layers``
or ``h`` (``model.layers.12.mlp.up_proj.weight``, ``transformer.h.3.ln_1.bias``).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from consortium.canonical import Fact, replace
from consortium.errors import BadInput
from consortium.merging.recipe import Settings

Shapes = Mapping[str, tuple[int, ...]]

BASE = -1  #: position of the base where inputs have theirs

_LAYER = re.compile(
    r"(?P<stack>(?:^|.*?\.)(?:layers|layer|h|blocks|block)\.)(?P<number>[0-9]{1,6})(?P<rest>\..+)"
)
_FIRST = re.compile(r"(?!.*embed_out)(.*\.)?([a-z_]*(embed|emb)|wte|wpe|rotary|relative_pe|shared)")


class SliceSource(Fact):
    """Layers ``start`` to ``stop`` (not included) of an input, with the settings that hold for them."""

    input: int  #: position among the inputs; BASE: the base
    start: int
    stop: int
    settings: Settings = {}


class OutputSlice(Fact):
    """A run of layers of the output: of every source as many, merged one by one."""

    sources: tuple[SliceSource, ...]
    settings: Settings = {}


class Layout(Fact):
    """The output's layers from first to last. What lies before the layers comes from the first slice's sources,
    what lies behind them from the last slice's."""

    slices: tuple[OutputSlice, ...]

    @property
    def num_layers(self) -> int:
        """What the output's config must say of its layers."""
        return sum(piece.sources[0].stop - piece.sources[0].start for piece in self.slices)

    def renumbered(self, positions: Sequence[int]) -> "Layout":
        """The same layout after the input at ``i`` has moved to ``positions[i]``."""
        moved = {BASE: BASE, **dict(enumerate(positions))}
        return Layout(
            slices=tuple(
                replace(
                    piece,
                    sources=tuple(replace(source, input=moved[source.input]) for source in piece.sources),
                )
                for piece in self.slices
            )
        )


class LayerName(NamedTuple):
    stack: str  #: ``model.layers.``
    number: int
    rest: str  #: ``.mlp.up_proj.weight``


def layer_of(tensor: str) -> LayerName | None:
    """Where a tensor lies in a stack of layers; None if it lies outside."""
    found = _LAYER.fullmatch(tensor)
    return LayerName(found["stack"], int(found["number"]), found["rest"]) if found else None


@dataclass(frozen=True, slots=True)
class Source:
    """One input's part in an output tensor."""

    input: int
    name: str
    settings: Settings  #: of the layout's source; empty without a layout


@dataclass(frozen=True, slots=True)
class OutputTensor:
    name: str
    shape: tuple[int, ...]
    base: str | None  #: name of the base's tensor
    sources: tuple[Source, ...]  #: without the base
    slice_settings: Settings
    position: float  #: from 0, the first layer of the slice, to 1, the last


def output_tensors(
    base_shapes: Shapes | None,
    input_shapes: Sequence[Shapes],
    layout: Layout | None,
    labels: Sequence[str],
) -> Iterator[OutputTensor]:
    """Every tensor of the output, in no particular order.

    labels  what messages call the inputs
    Raises BadInput for a tensor that is missing, extra or misshapen in any of those that should share it.
    """
    shapes = dict(enumerate(input_shapes))
    called = dict(enumerate(labels))
    if base_shapes is not None:
        shapes, called = {BASE: base_shapes, **shapes}, {BASE: "the base", **called}
    if layout is None:
        yield from _namesakes(shapes, called)
    else:
        yield from _Arranged(layout, shapes, called).tensors()


def _namesakes(shapes: Mapping[int, Shapes], called: Mapping[int, str]) -> Iterator[OutputTensor]:
    first = next(iter(shapes))
    for other in shapes:
        _check_same(shapes[first], shapes[other], called[first], called[other])
    heights: dict[str, int] = {}
    for name in shapes[first]:
        if layer := layer_of(name):
            heights[layer.stack] = max(heights.get(layer.stack, 0), layer.number + 1)
    for name, shape in shapes[first].items():
        layer = layer_of(name)
        yield OutputTensor(
            name=name,
            shape=shape,
            base=name if BASE in shapes else None,
            sources=tuple(Source(number, name, {}) for number in shapes if number != BASE),
            slice_settings={},
            position=_position(layer.number, heights[layer.stack]) if layer else 0.0,
        )


class _Arranged:
    """The tensors of a layout."""

    def __init__(self, layout: Layout, shapes: Mapping[int, Shapes], called: Mapping[int, str]) -> None:
        self._layout, self._called = layout, called
        stacks: set[str] = set()
        self._outside: dict[int, Shapes] = {}  #: of every input, the tensors outside its layers
        self._layers: dict[int, dict[int, dict[str, tuple[int, ...]]]] = {}  #: input -> layer -> rest of name
        for number, tensors in shapes.items():
            layers = self._layers[number] = {}
            for name, shape in tensors.items():
                if layer := layer_of(name):
                    stacks.add(layer.stack)
                    layers.setdefault(layer.number, {})[layer.rest] = shape
            self._outside[number] = {name: shape for name, shape in tensors.items() if not layer_of(name)}
        if len(stacks) != 1:
            names = ", ".join(sorted(stacks)) or "none"
            raise BadInput(
                f"slices arrange one stack of layers, the models have: {names}; list models instead"
            )
        self._stack = stacks.pop()
        self._check_sources(shapes)

    def tensors(self) -> Iterator[OutputTensor]:
        slices = self._layout.slices
        for piece, wanted in ((slices[0], True), (slices[-1], False)):
            yield from self._merged(piece, self._outside, wanted)
        index = 0
        for piece in slices:
            height = piece.sources[0].stop - piece.sources[0].start
            for offset in range(height):
                yield from self._layer(piece, offset, index, _position(offset, height))
                index += 1

    def _merged(
        self, piece: OutputSlice, outside: Mapping[int, Shapes], first: bool
    ) -> Iterator[OutputTensor]:
        """The tensors before the layers (``first``) or behind them, from the sources of a slice."""
        parts = [
            {name: shape for name, shape in outside[source.input].items() if _comes_first(name) == first}
            for source in piece.sources
        ]
        for part, source in zip(parts, piece.sources, strict=True):
            _check_same(parts[0], part, self._called[piece.sources[0].input], self._called[source.input])
        for name, shape in parts[0].items():
            yield self._tensor(name, shape, piece, [name] * len(parts), 0.0)

    def _layer(self, piece: OutputSlice, offset: int, index: int, position: float) -> Iterator[OutputTensor]:
        numbers = [source.start + offset for source in piece.sources]
        parts, labels = [], []
        for source, number in zip(piece.sources, numbers, strict=True):
            parts.append(self._layers[source.input].get(number, {}))
            labels.append(f"layer {number} of {self._called[source.input]}")
        for part, label in zip(parts, labels, strict=True):
            _check_same(parts[0], part, labels[0], label)
        for rest, shape in parts[0].items():
            names = [f"{self._stack}{number}{rest}" for number in numbers]
            yield self._tensor(f"{self._stack}{index}{rest}", shape, piece, names, position)

    def _tensor(
        self, name: str, shape: tuple[int, ...], piece: OutputSlice, names: Sequence[str], position: float
    ) -> OutputTensor:
        pairs = list(zip(piece.sources, names, strict=True))
        return OutputTensor(
            name=name,
            shape=shape,
            base=next((inner for source, inner in pairs if source.input == BASE), None),
            sources=tuple(
                Source(source.input, inner, source.settings)
                for source, inner in pairs
                if source.input != BASE
            ),
            slice_settings=piece.settings,
            position=position,
        )

    def _check_sources(self, shapes: Mapping[int, Shapes]) -> None:
        used = set()
        for number, piece in enumerate(self._layout.slices, 1):
            inputs = [source.input for source in piece.sources]
            if len(inputs) != len(set(inputs)):
                raise BadInput(f"slice {number}: a model stands in it twice; keep one source of each model")
            if len({source.stop - source.start for source in piece.sources}) != 1:
                lengths = ", ".join(str(source.stop - source.start) for source in piece.sources)
                raise BadInput(f"slice {number}: its sources have {lengths} layers; give each as many")
            for source in piece.sources:
                height = max(self._layers[source.input], default=-1) + 1
                if not 0 <= source.start < source.stop <= height:
                    raise BadInput(
                        f"slice {number}: layer_range [{source.start}, {source.stop}] of "
                        f"{self._called[source.input]}, which has {height} layers; write a start and an end "
                        f"with 0 <= start < end <= {height}"
                    )
            used.update(inputs)
        for number in shapes:
            if number not in used and number != BASE:
                raise BadInput(f"{self._called[number]} stands in no slice; use it or leave it out")


def _position(index: int, height: int) -> float:
    return index / (height - 1) if height > 1 else 1.0


def _comes_first(tensor: str) -> bool:
    """Whether a tensor outside the layers lies before them: embeddings do; norms, heads do not."""
    return _FIRST.match(tensor) is not None


def _check_same(left: Shapes, right: Shapes, left_label: str, right_label: str) -> None:
    for has, lacks, label, other in (
        (left, right, left_label, right_label),
        (right, left, right_label, left_label),
    ):
        if extra := sorted(has.keys() - lacks.keys()):
            more = f" and {len(extra) - 1} more" if len(extra) > 1 else ""
            raise BadInput(
                f"{other} lacks tensor {extra[0]!r}{more}, which {label} has; all must be of one architecture "
                "with the same weights tied, save them alike"
            )
    for name in sorted(left):
        if left[name] != right[name]:
            raise BadInput(
                f"tensor {name!r} has shape {list(right[name])} in {right_label} and {list(left[name])} in "
                f"{left_label}; all must be of one architecture with one vocabulary"
            )
