"""The experiment on languages runs whole in its short form, spends the same everywhere, and counts as it says."""

import json
import math
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "languages.py"


@pytest.fixture(name="scripts")
def _scripts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment's program, with the modules beside it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import languages

    module: ModuleType = languages
    return module


def result(scripts: ModuleType, variant: str, seed: int, bits: dict[str, float], **more: Any) -> Any:
    return scripts.Result(variant=variant, seed=seed, scale="", bits_per_byte=bits, **more)


@pytest.mark.soak
def test_every_setting_runs_and_stands_in_the_table(tmp_path: Path, scripts: ModuleType) -> None:
    page = tmp_path / "docs" / "page.md"
    command = [sys.executable, SCRIPT, "--short", "--seeds", "1", "--workdir", tmp_path, "--page", page]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = {one["variant"]: one for one in map(json.loads, lines)}

    variants = scripts.every_setting_once(scripts.VARIANTS)
    names = [variant.name for variant in variants]
    assert sorted(found) == sorted(names)
    table = page.read_text(encoding="utf-8")
    for name in names:
        assert f"| {name} | " in table
    picture = xml.etree.ElementTree.parse(page.parent / "pictures" / "languages.svg")
    circles = list(picture.iter("{http://www.w3.org/2000/svg}circle"))
    assert len(circles) == sum(variant.kind != "base" for variant in variants)

    everything = found["joint, large batch"]["tokens"]
    less = {"base": 0, "base, public text of another kind": 0}
    for variant in variants:
        tokens = found[variant.name]["tokens"]
        if variant.slow in ("partial", "refuse", "next_round"):  # these lose what the slow site did not do
            assert 0 < tokens < everything
        else:
            assert tokens == less.get(variant.name, everything), variant.name
        assert all(0 < bits < 12 for bits in found[variant.name]["bits_per_byte"].values())
        if variant.attack != "no":
            assert found[variant.name]["bad_offered"] == found[variant.name]["rounds"] > 0
    sizes = {name: found[name]["upload_bytes"] for name in ("FedAvg, H 30", "int8", "int4")}
    assert sizes["int4"] < sizes["int8"] < sizes["FedAvg, H 30"]
    assert found["average"]["bits_per_byte"] != found["TIES, density 0.2"]["bits_per_byte"]

    assert not scripts.due(variants, [1], scripts.read_results(tmp_path / "results.jsonl", scripts.SHORT))


def test_the_short_form_leaves_no_setting_out(scripts: ModuleType) -> None:
    import languages_variants

    some = scripts.every_setting_once(scripts.VARIANTS)
    assert languages_variants.STANDARD in some and len(some) < len(scripts.VARIANTS) / 2
    for field in languages_variants.SWITCHES:
        of_all, of_some = ({getattr(one, field) for one in among} for among in (scripts.VARIANTS, some))
        assert of_some == of_all, field
    for value in (lambda one: one.recipe.method, lambda one: one.recipe.outer.optimizer):
        assert {value(one) for one in some} == {value(one) for one in scripts.VARIANTS}


def test_a_run_that_was_cut_off_goes_on_with_the_first_tier_of_all_seeds(scripts: ModuleType) -> None:
    done = [result(scripts, "base", 1, {"fi": 1.0})]
    wanted = scripts.due(scripts.VARIANTS, [1, 2], done)
    assert ("base", 1) not in [(variant.name, seed) for variant, seed in wanted]
    assert len(wanted) == 2 * len(scripts.VARIANTS) - 1
    assert [variant.tier for variant, _ in wanted] == sorted(variant.tier for variant, _ in wanted)


def test_intervals_are_students_and_paired_by_seed(scripts: ModuleType) -> None:
    import languages_page

    found = languages_page.estimate([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.303 / math.sqrt(3))
    assert languages_page.estimate([1.5]) == (1.5, None)

    # seeds differ by much, the difference hardly: an interval that forgot the pairs would be a hundred times wider
    levels = {1: 3.0, 2: 4.0, 3: 5.0}
    results = []
    for seed, level in levels.items():
        noise = 0.001 * seed
        results += [
            result(scripts, "base", seed, {"fi": level, "sq": level}),
            result(scripts, "FedAvg, H 30", seed, {"fi": level - 0.2, "sq": level - 0.2}),
            result(scripts, "int4", seed, {"fi": level - 0.2 + noise, "sq": level - 0.2}, gate=seed != 2),
        ]
    lines = languages_page.page(results, scripts.Scale()).splitlines()
    row = next(line for line in lines if line.startswith("| int4 |"))
    assert "| +0.0010 ± 0.0012 |" in row
    assert "| 2 of 3 |" in row
    assert "(fi)" in row  # the language that gained least


def test_a_wrecked_model_stands_at_the_edge_of_the_picture_with_its_number(scripts: ModuleType) -> None:
    import languages_page

    results = [result(scripts, "base", 1, {"fi": 2.0}), result(scripts, "average, replay 0", 1, {"fi": 6.0})]
    picture = languages_page.picture(results)
    assert "average, replay 0 (-200 %)" in picture
    circle = next(line for line in picture.splitlines() if line.startswith("<circle"))
    assert 'cx="270.0"' in circle and 'fill="none"' in circle
