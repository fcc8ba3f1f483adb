import re
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.screens.heatmap import colour_of, heat_map, ink_on
from console.screens.inspection import inspection
from consortium.canonical import encode
from consortium.merging.report import EMBEDDINGS, REST, WHOLE, Inspection, inspect, layer_groups

F64 = npt.NDArray[np.float64]
NAMES = ("north", "sofia", "centre")
TENSORS = {
    "model.embed_tokens.weight": 6,
    "model.layers.0.mlp.weight": 4,
    "model.layers.1.mlp.weight": 4,
    "model.layers.2.mlp.weight": 4,
    "model.layers.10.mlp.weight": 4,
    "model.norm.weight": 2,
    "lm_head.weight": 6,
}


def deltas(seed: int = 0) -> dict[str, F64]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((3, size)) for name, size in TENSORS.items()}


def report_of(
    deltas: Mapping[str, F64], base: Mapping[str, F64] | None = None, by_layer: bool = False
) -> Inspection:
    return inspect(
        NAMES,
        None if base is None else "v3",
        {name: rows_KN @ rows_KN.T for name, rows_KN in deltas.items()},
        {name: rows_KN.shape[1] for name, rows_KN in deltas.items()},
        None if base is None else {name: float(row_N @ row_N) for name, row_N in base.items()},
        by_layer,
    )


def test_layers_are_grouped_from_input_to_output() -> None:
    groups = layer_groups(TENSORS)
    assert list(groups) == [EMBEDDINGS, "block 0", "block 1", "blocks 2-10", REST]
    assert groups["blocks 2-10"] == ["model.layers.2.mlp.weight", "model.layers.10.mlp.weight"]
    assert groups[REST] == ["lm_head.weight", "model.norm.weight"]
    assert list(layer_groups(TENSORS, by_layer=True))[1:-1] == ["block 0", "block 1", "block 2", "block 10"]


def test_a_group_that_is_empty_is_not_there() -> None:
    assert layer_groups(["h.0.w", "h.1.w"]) == {"block 0": ["h.0.w"], "block 1": ["h.1.w"]}
    assert layer_groups(["wte.weight", "scale"]) == {EMBEDDINGS: ["wte.weight"], REST: ["scale"]}


@given(st.sets(st.integers(0, 200), min_size=1), st.booleans())
def test_every_tensor_is_in_one_group(numbers: set[int], by_layer: bool) -> None:
    names = sorted(f"layers.{number}.{part}" for number in numbers for part in "ab")
    groups = layer_groups([*names, "norm.weight"], by_layer)
    assert sorted(name for group in groups.values() for name in group) == [*names, "norm.weight"]
    assert len(groups) == 1 + (len(numbers) if by_layer else min(3, len(numbers)))


def test_the_figures_are_those_of_the_vectors() -> None:
    given, base = deltas(), {name: np.full(size, 2.0) for name, size in TENSORS.items()}
    report = report_of(given, base)
    for group, names in zip(report.groups, [list(TENSORS), *layer_groups(TENSORS).values()], strict=True):
        x_KN = np.concatenate([given[name] for name in names], axis=1)
        norms_K = np.linalg.norm(x_KN, axis=1)
        cosines_KK = (x_KN @ x_KN.T) / np.outer(norms_K, norms_K)
        assert group.elements == x_KN.shape[1] and group.tensors == len(names)
        assert group.base_norm == pytest.approx(2.0 * np.sqrt(group.elements))
        np.testing.assert_allclose(group.norms, norms_K)
        np.testing.assert_allclose(np.array(group.cosines, float), cosines_KK)
        assert group.mean_cosine == pytest.approx(cosines_KK[np.triu_indices(3, 1)].mean())
        assert group.conflict == pytest.approx(1 - np.linalg.norm(x_KN.sum(0)) / norms_K.sum())


@pytest.mark.parametrize(
    ("rows", "conflict", "cosine"),
    [
        ([[1, 2], [1, 2], [2, 4]], 0.0, 1.0),
        ([[3, 0, 0], [0, 3, 0], [0, 0, 3]], 1 - 3**-0.5, 0.0),
        ([[1, 0], [1, 0], [-2, 0]], 1.0, -1 / 3),
    ],
    ids=["all the same way", "orthogonal", "cancelling out"],
)
def test_conflict_is_the_length_that_the_sum_loses(
    rows: list[list[float]], conflict: float, cosine: float
) -> None:
    whole = report_of({"w": np.array(rows, float)}).groups[0]
    assert whole.conflict == pytest.approx(conflict, abs=1e-12)
    assert whole.mean_cosine == pytest.approx(cosine)


def test_a_contribution_of_zeros_has_no_direction() -> None:
    whole = report_of({"w": np.array([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])}).groups[0]
    assert whole.cosines[1] == (None, None, None) and whole.cosines[0][1] is None
    assert whole.mean_cosine == pytest.approx(0.5**0.5)
    nothing = report_of({"w": np.zeros((3, 2))}).groups[0]
    assert (nothing.conflict, nothing.mean_cosine, nothing.norms) == (None, None, (0.0, 0.0, 0.0))
    assert b"NaN" not in encode(nothing)


def test_the_picture_shows_every_cosine_and_is_the_same_each_time() -> None:
    import xml.etree.ElementTree as ElementTree

    report = report_of(deltas(), {name: np.ones(size) for name, size in TENSORS.items()})
    picture = heat_map(report, "little <model>")
    assert picture == heat_map(report, "little <model>")
    root = ElementTree.fromstring(picture)
    said = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    for group in report.groups:
        for i, row in enumerate(group.cosines, 1):
            for j, cosine in enumerate(row, 1):
                assert f"{group.name}: {i} and {j}: {cosine:.3f}" in said
    assert "1  north" in picture and WHOLE in picture and "little &lt;model&gt;" in picture


def test_cells_and_words_stay_inside_the_picture() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 9, 40):
        rows_KN = rng.standard_normal((count, 8))
        grams = {f"h.{layer}.w": rows_KN @ rows_KN.T for layer in range(30)}
        names = [f"site {number}" for number in range(count)]
        report = inspect(names, None, grams, dict.fromkeys(grams, 8), by_layer=True)
        picture = heat_map(report, "t")
        width, height = map(int, re.search(r'width="(\d+)" height="(\d+)" role', picture).groups())  # type: ignore[union-attr]
        for x, y in re.findall(r' x="(-?\d+)" y="(-?\d+)"', picture):
            assert 0 <= int(x) < width and 0 <= int(y) < height


def test_numbers_on_a_cell_can_be_read_on_its_colour() -> None:
    """WCAG's contrast of a number with its cell is at least 4.5 at every cosine."""

    def luminance(colour: tuple[int, int, int]) -> float:
        linear = [c / 12.92 if (c := v / 255) <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for v in colour]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for step in range(-50, 51):
        colour = colour_of(step / 50)
        ink = luminance({"on-dark": (255, 255, 255), "on-light": (0, 0, 0)}[ink_on(*colour)])
        low, high = sorted((ink, luminance(colour)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (step, colour)


def test_the_tables_name_the_pair_that_agrees_least() -> None:
    from rich.console import Console

    rows_KN = np.array([[1.0, 0.0, 0.1], [-1.0, 0.2, 0.0], [0.0, 1.0, 0.0]])
    console = Console(width=110, color_system=None, record=True, _environ={})
    with console.capture() as seen:
        console.print(inspection(report_of({"h.0.w": rows_KN}, {"h.0.w": np.full(3, 10.0)}), 110))
    output = seen.get()
    assert "3 contributions, 3 parameters; differences from v3" in output
    assert re.search(r"block 0 .* -0\.98 \(1, 2\) +0\.\d\d", output)
    assert re.search(r"1 +north +1\.005 +5\.80% +\+1\.00 +-0\.98", output)
