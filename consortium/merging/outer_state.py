"""Where the outer optimizer's state lies between merges: a float32 file beside the model, streamed by chunks.

The momentum of tensor ``x`` is called ``x``, any further row ``x.<row>`` (``x.variance``).
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType

from consortium.errors import BadInput
from consortium.merging.operands import read_finite
from consortium.merging.outer import state_names
from consortium.merging.recipe import OuterStep
from consortium.merging.survey import scratch_rows
from consortium.tensor_writer import Shapes, TensorWriter
from consortium.tensors import F32Array, TensorFile, TensorInfo


class OuterState(AbstractContextManager["OuterState"]):
    """The state before a merge and after it.

    before  the file that the last merge left; None: there was none
    after   the file to write; not made if the optimizer keeps nothing
    Raises BadInput if ``before`` is not the state of this optimizer and these tensors.
    """

    def __init__(self, before: Path | None, after: Path, step: OuterStep, shapes: Shapes) -> None:
        self._names = state_names(step)
        self._stack = ExitStack()
        self._before: TensorFile | None = None
        self._after: TensorWriter | None = None
        if not self._names:
            return
        stored = {_stored(name, row): shape for name, shape in shapes.items() for row in self._names}
        with ExitStack() as opening:
            if before is not None:
                self._before = opening.enter_context(TensorFile(before, "the outer state"))
                _require(self._before, stored)
            self._after = opening.enter_context(TensorWriter(after, stored, "F32"))
            self._stack = opening.pop_all()

    def read(self, name: str, start: int, size: int) -> Sequence[F32Array] | None:
        """The rows of the state, in this thread's buffer; None before the first step."""
        if self._before is None:
            return None
        rows_SN = scratch_rows("outer state", len(self._names), size)
        for row, out_N in zip(self._names, rows_SN, strict=True):
            read_finite(self._before, _stored(name, row), start, out_N)
        return list(rows_SN)

    def write(self, name: str, start: int, rows_SN: Sequence[F32Array]) -> None:
        if self._after is not None:
            for row, values_N in zip(self._names, rows_SN, strict=True):
                self._after.write(_stored(name, row), start, values_N)

    def place_before(self, name: str) -> tuple[int, TensorInfo] | None:
        """The open file that holds the only row of the state before, and where in it; None before the first step."""
        return self._before.place(name) if self._before is not None else None

    def start_writeback(self, name: str, elements: range) -> None:
        """Have the system begin to write what was kept of these elements to disk."""
        if self._after is not None:
            for row in self._names:
                self._after.start_writeback(_stored(name, row), elements)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)


def _stored(name: str, row: str) -> str:
    return name if row == "momentum" else f"{name}.{row}"


def _require(before: TensorFile, stored: Shapes) -> None:
    for name in sorted(stored.keys() | before.keys()):
        found = before[name].shape if name in before else None
        if found != stored.get(name):
            raise BadInput(
                f"{before.label}: tensor {name!r} is {found}, this recipe's optimizer and base want "
                f"{stored.get(name)}; give the state that the same recipe left, or none to start from zero"
            )
