"""From which tensors, and with which parameters, every tensor of the merged model is made.

Parameters are resolved as mergekit 0.1.5 does it. Of several settings the most special one that fits the
tensor counts: the input's own, then the slice's, then the recipe's. A filter is a part of the tensor's name:
of the input's tensor for an input's parameter, of the output's for a shared one. A gradient is read at the
layer's place in its slice, from 0 to 1 (1 if the slice has one layer); tensors outside the layers take 0.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from consortium.errors import BadInput, Refused
from consortium.merging.layers import BASE, Layout, OutputTensor, output_tensors
from consortium.merging.recipe import MethodName, Recipe, Settings
from consortium.merging.recipes.signatures import SIGNATURES, Parameter, Signature, Value

__all__ = ["BASE", "Layout", "TensorPlan", "plan_tensors"]

Shapes = Mapping[str, tuple[int, ...]]

_NO_WEIGHT = 1e-8  #: mergekit's: a sum of weights nearer to zero than this divides nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    name: str
    shape: tuple[int, ...]
    base: str | None  #: name of the base's tensor; None: there is no base, or the method ignores it
    sources: tuple[tuple[int, str], ...]  #: (position of the input, name of its tensor)
    shared: Mapping[str, Value]  #: the method's shared parameters, defaults filled in
    own: tuple[Mapping[str, float], ...]  #: one per source


def plan_tensors(
    recipe: Recipe,
    settings: Sequence[Settings],
    base_shapes: Shapes | None,
    input_shapes: Sequence[Shapes],
    layout: Layout | None = None,
    labels: Sequence[str] = (),
) -> tuple[TensorPlan, ...]:
    """The plan of every tensor of the merged model, sorted by name.

    settings  of the inputs, in their order; ``input_shapes`` and ``labels`` (their names, for messages) too
    layout    which layers go where; None: every tensor from its namesakes
    An input for which nobody speaks of ``weight`` has 1.0, since a campaign weighs by tokens; where anyone
    does, a tensor that no filter fits has no weight, and that is an error as in mergekit.
    Raises BadInput for tensors that do not fit together and for parameters that are missing, unknown or out
    of range, and Refused for weights that sum to zero where they divide.
    """
    return tuple(_Planner(recipe, settings, base_shapes, input_shapes, layout, labels).plans())


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        settings: Sequence[Settings],
        base_shapes: Shapes | None,
        input_shapes: Sequence[Shapes],
        layout: Layout | None,
        labels: Sequence[str],
    ) -> None:
        self._recipe, self._settings = recipe, settings
        self._signature = SIGNATURES[recipe.method]
        self._base_shapes, self._input_shapes, self._layout = base_shapes, input_shapes, layout
        self._labels = labels or [f"input {number}" for number in range(1, len(input_shapes) + 1)]

    def plans(self) -> Iterator[TensorPlan]:
        self._check_counts()
        self._check_names()
        outputs = output_tensors(self._base_shapes, self._input_shapes, self._layout, self._labels)
        for output in sorted(outputs, key=lambda one: one.name):
            yield self._plan(output)

    def _plan(self, output: OutputTensor) -> TensorPlan:
        scopes = (output.slice_settings, self._recipe.parameters)
        shared = {
            name: self._value(name, parameter, scopes, output.name, output)
            for name, parameter in self._signature.shared.items()
        }
        own = []
        for source in output.sources:
            label = self._labels[source.input]
            inner = (source.settings, self._settings[source.input], *scopes)
            own.append(
                {
                    name: float(self._value(name, parameter, inner, source.name, output, f" of {label}"))
                    for name, parameter in self._signature.own.items()
                }
            )
            self._check_together(own[-1], source.name, label)
        self._check_weights(output.name, shared, [values["weight"] for values in own if "weight" in values])
        return TensorPlan(
            name=output.name,
            shape=output.shape,
            base=None if self._signature.base == "ignored" else output.base,
            sources=tuple((source.input, source.name) for source in output.sources),
            shared=shared,
            own=tuple(own),
        )

    def _value(
        self,
        name: str,
        parameter: Parameter,
        scopes: Sequence[Settings],
        tensor: str,
        output: OutputTensor,
        whose: str = "",
    ) -> Value:
        value = resolve(name, scopes, tensor, output.position)
        what = f"tensor {tensor!r}: parameter {name!r}{whose}"
        if value is not None:
            try:
                return parameter.checked(value)
            except BadInput as error:
                raise BadInput(f"{what} {error}") from error
        if parameter.default is not None:
            return parameter.default
        if name == "weight" and not any(name in scope for scope in scopes):
            return 1.0
        raise BadInput(
            f"{what} is missing, method {self._recipe.method} has no default; "
            "set it, or add an entry without a filter to the end of its list"
        )

    def _check_counts(self) -> None:
        check_num_inputs(self._recipe.method, self._signature, len(self._input_shapes))
        if self._signature.base == "required" and self._base_shapes is None:
            raise BadInput(f"method {self._recipe.method} merges changes to a base; name the base model")
        for number, piece in enumerate(self._layout.slices if self._layout else ()):
            used = [source.input for source in piece.sources]
            check_num_inputs(
                self._recipe.method, self._signature, len(set(used) - {BASE}), f"slice {number + 1}: "
            )
            if self._base_shapes is not None and self._signature.base != "ignored" and BASE not in used:
                raise BadInput(
                    f"slice {number + 1} has no source from the base; method {self._recipe.method} needs one, "
                    "add the base model with its layer_range"
                )

    def _check_names(self) -> None:
        everywhere = self._signature.parameters
        _check_known(self._recipe.parameters, everywhere, self._recipe.method, "the recipe")
        for settings, label in zip(self._settings, self._labels, strict=True):
            _check_known(settings, self._signature.own, self._recipe.method, label)
        for number, piece in enumerate(self._layout.slices if self._layout else ()):
            _check_known(piece.settings, everywhere, self._recipe.method, f"slice {number + 1}")
            for source in piece.sources:
                where = f"a source of slice {number + 1}"
                _check_known(source.settings, self._signature.own, self._recipe.method, where)

    def _check_together(self, own: Mapping[str, float], tensor: str, label: str) -> None:
        if "epsilon" not in own or own["density"] in (0, 1):  # all or nothing: no chance to spread
            return
        density, epsilon = own["density"], own["epsilon"]
        if not (density - epsilon > 0 and density + epsilon < 1):
            raise BadInput(
                f"tensor {tensor!r}: density {density:g} and epsilon {epsilon:g} of {label} give chances from "
                f"{density - epsilon:g} to {density + epsilon:g}; they must lie between 0 and 1, lower epsilon"
            )

    def _check_weights(self, name: str, shared: Mapping[str, Value], weights: Sequence[float]) -> None:
        """Where tokens count as well, the merge checks the products."""
        divides = shared.get("normalize", shared.get("normalize_weights", True))
        if not weights or not divides or self._recipe.weights == "tokens":
            return
        if not any(weights) and self._base_shapes is not None and self._signature.base != "ignored":
            return  # nobody changes this tensor: the base's stays
        parts = [abs(weight) for weight in weights] if self._signature.elects else weights
        if abs(math.fsum(parts)) < _NO_WEIGHT:
            raise Refused(
                f"tensor {name!r}: the weights {', '.join(f'{weight:g}' for weight in weights)} sum to zero and "
                "would divide; give them another sum, or a method and settings that do not normalize"
            )


def resolve(name: str, scopes: Sequence[Settings], tensor: str, position: float) -> Value | None:
    """The value of a parameter for a tensor, the most special scope first; None if no setting fits."""
    for scope in scopes:
        for setting in scope.get(name, ()):
            if setting.filter is None or setting.filter in tensor:
                return value_at(setting.value, position)
    return None


def value_at(value: Value | tuple[float, ...], position: float) -> Value:
    """A gradient's value at a position from 0 (first layer) to 1 (last); anything else as it is."""
    if not isinstance(value, tuple):
        return value
    if not value:
        raise BadInput("a gradient without numbers; write at least one, or leave the parameter out")
    place = position * (len(value) - 1)
    below = int(place)
    above = min(below + 1, len(value) - 1)
    share = place - below
    return (1 - share) * value[below] + share * value[above]


def check_num_inputs(method: MethodName, signature: Signature, count: int, where: str = "") -> None:
    """Raise BadInput unless a method takes so many inputs."""
    least, most = signature.inputs_min, signature.inputs_max
    if least <= count and (most is None or count <= most):
        return
    wanted = (
        f"exactly {least}" if least == most else f"at least {least}" if most is None else f"at most {most}"
    )
    besides = " besides the base" if signature.base == "required" else ""
    raise BadInput(f"{where}{count} inputs{besides}; method {method} takes {wanted}")


def _check_known(settings: Settings, known: Mapping[str, object], method: MethodName, where: str) -> None:
    for name in settings:
        if name not in known:
            words = ", ".join(known) if known else "none"
            raise BadInput(
                f"{where}: {method} has no parameter {name!r} there; remove it, or write one of: {words}"
            )
