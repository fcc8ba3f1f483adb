"""The experiment on languages runs whole in its short form, spends the same everywhere, and counts as it says."""

import json
import math
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from consortium.canonical import replace
from site_agent.trainer.llama import Llama
from site_agent.trainer.ranks import Ranks
from site_agent.trainer.shape import Shape, shape_of

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "languages.py"
FEW = ("base", "FedAvg, H 30", "flipped x3, no defence", "flipped x3, shipped defaults")
FEW_STEPS = {"learning_rate": 0.02, "batch_sequences": 4, "steps": 9, "seed_steps": 9, "round_share": 0.1}
ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"))


@pytest.fixture(name="scripts")
def _scripts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The experiment's program, with the modules beside it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import languages

    module: ModuleType = languages
    return module


def result(scripts: ModuleType, variant: str, seed: int, bits: dict[str, float], **more: Any) -> Any:
    return scripts.Result(variant=variant, seed=seed, scale="", bits_per_byte=bits, **more)


def of_seed_1(scripts: ModuleType, names: tuple[str, ...]) -> list[tuple[Any, int]]:
    return [(one, 1) for one in scripts.VARIANTS if one.name in names]


def lines_of(folder: Path) -> dict[str, dict[str, Any]]:
    """What is written of every run, by variant."""
    lines = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return {one["variant"]: one for one in map(json.loads, lines)}


def mean(line: dict[str, Any]) -> float:
    return statistics.fmean(line["bits_per_byte"].values())


def drawn(world: Any, seed: int) -> Path:
    """New weights without the program that draws them, of which six seconds in seven are transformers' import."""
    from safetensors.torch import save_file

    config = {
        **world.scale.config,
        "vocab_size": world.scale.vocabulary,
        "eos_token_id": 0,
        "rms_norm_eps": 1e-6,
    }
    shape = shape_of(config)
    assert isinstance(shape, Shape), shape
    dice = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.ones_like(tensor)
        if tensor.ndim == 1
        else 0.02 * torch.randn(tensor.shape, generator=dice)
        for name, tensor in Llama(shape).state_dict().items()
    }
    place: Path = world._folder / f"new-weights-{seed}"
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


@pytest.fixture(name="few", scope="module")
def _few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Path]]:
    """Four variants, really run, of few steps that are large enough to tell: the program and its folder."""
    folder = tmp_path_factory.mktemp("experiment")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        import languages
        import languages_world

        patch.setattr(languages_world.World, "_drawn", drawn)
        patch.setattr(languages, "SHORT", replace(languages.SHORT, **FEW_STEPS))
        torch.set_num_threads(1)
        languages.run_all(folder, languages.SHORT, of_seed_1(languages, FEW), ALONE)
        yield languages, folder


def test_rounds_teach_and_poison_harms_where_nothing_defends(few: tuple[ModuleType, Path]) -> None:
    _, folder = few
    found = lines_of(folder)
    assert sorted(found) == sorted(FEW)
    base, honest, poisoned, defended = (found[name] for name in FEW)
    assert mean(honest) < mean(base)
    assert mean(poisoned) > mean(honest)
    assert mean(defended) < mean(poisoned)
    assert defended["promoted"] < defended["rounds"]
    assert poisoned["bad_let_in"] == poisoned["bad_offered"] == poisoned["rounds"] > 0
    assert honest["let_in"] == honest["offered"] == 4 * honest["rounds"]
    assert honest["tokens"] == poisoned["tokens"] == defended["tokens"] > base["tokens"] == 0


def test_the_same_seed_gives_the_same_bits_per_byte(few: tuple[ModuleType, Path], tmp_path: Path) -> None:
    scripts, folder = few
    text_and_base = shutil.ignore_patterns("results.jsonl", "shared-*", "claims", "cache")
    shutil.copytree(folder, tmp_path / "again", symlinks=True, ignore=text_and_base)
    scripts.run_all(tmp_path / "again", scripts.SHORT, of_seed_1(scripts, FEW[1:2]), ALONE)
    once, again = lines_of(folder)[FEW[1]], lines_of(tmp_path / "again")[FEW[1]]
    assert {**again, "cpu_seconds": 0} == {**once, "cpu_seconds": 0}


def test_the_page_holds_what_was_measured(
    few: tuple[ModuleType, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripts, folder = few
    page = tmp_path / "page.md"
    page.write_text("# Old\n\n## Reading it\n\nBy hand.\n", encoding="utf-8")
    words = ["--short", "--only-page", "--workdir", str(folder), "--seeds", "1", "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["languages.py", *words])
    assert scripts.main() == 0
    told = page.read_text(encoding="utf-8")
    assert "# Old" not in told and told.endswith("## Reading it\n\nBy hand.\n")
    circles = (tmp_path / "pictures" / "languages.svg").read_text(encoding="utf-8").count("<circle")
    found = lines_of(folder)
    assert circles == len(found) - 1  # the base has no gain over itself
    base = mean(found["base"])
    for name, line in found.items():
        rows = [row.split(" | ") for row in told.splitlines() if row.startswith(f"| {name} | ")]
        (of_means, of_languages) = rows
        worst = max(line["bits_per_byte"].values())
        assert of_means[1:3] == [f"{mean(line):.3f}", f"{worst:.3f}"]
        if name != "base":
            assert of_means[3] == f"{100 * (1 - mean(line) / base):+.2f} %"
        figures = [f"{bits:.3f}" for _, bits in sorted(line["bits_per_byte"].items())]
        assert [cell.strip(" |") for cell in of_languages[1:]] == figures


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
    for variant in variants:
        tokens = found[variant.name]["tokens"]
        if variant.slow in ("partial", "refuse", "next_round"):  # these lose what the slow site did not do
            assert 0 < tokens < everything
        else:
            assert tokens == (0 if variant.kind == "base" else everything), variant.name
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


def test_a_variant_is_compared_with_the_same_text_and_width(scripts: ModuleType) -> None:
    import languages_page

    for variant in scripts.VARIANTS:
        for other in (languages_page.base_of(variant), languages_page.standard_of(variant)):
            assert (other.text, other.width) == (variant.text, variant.width), variant.name
    assert languages_page.standard_of(scripts.VARIANTS[0]).name == "FedAvg, H 30"


def test_a_wrecked_model_stands_at_the_edge_of_the_picture_with_its_number(scripts: ModuleType) -> None:
    import languages_page

    results = [result(scripts, "base", 1, {"fi": 2.0}), result(scripts, "average, replay 0", 1, {"fi": 6.0})]
    picture = languages_page.picture(results)
    assert "average, replay 0 (-200 %)" in picture
    circle = next(line for line in picture.splitlines() if line.startswith("<circle"))
    assert 'cx="270.0"' in circle and 'fill="none"' in circle
