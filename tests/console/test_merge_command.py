"""``sprachbund merge`` on folders of models that are nobody's consortium."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from console.app import app
from console.main import COMMANDS
from consortium.deltas import write_delta
from consortium.ids import Digest
from consortium.merging.checksums import checksums_of
from consortium.merging.run import merge_recipe
from consortium.store import ref_of
from consortium.tensor_writer import CheckpointWriter
from consortium.tensors import Checkpoint, F32Array

assert COMMANDS
SHAPES = {
    "lm_head.weight": (7, 4),
    "model.embed_tokens.weight": (7, 4),
    "model.layers.0.mlp.weight": (5, 4),
    "model.layers.1.mlp.weight": (5, 4),
    "model.norm.weight": (4,),
}
Values = dict[str, F32Array]


def values(seed: int, around: Values | None = None) -> Values:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}
    if around is None:
        return drawn
    return {name: around[name] + np.float32(0.01) * array for name, array in drawn.items()}


def save(place: Path, tensors: Values, vocabulary: str = "a", dtype: str = "F32") -> Path:
    place.mkdir()
    with CheckpointWriter(place, SHAPES, dtype, 1 << 20) as writer:  # type: ignore[arg-type]
        for name, array in tensors.items():
            writer.write(name, 0, array.reshape(-1))
    (place / "config.json").write_text('{"model_type": "toy", "dtype": "float32"}')
    tokenizer = {"model": {"vocab": {vocabulary: 0}}, "added_tokens": [], "padding": place.name}
    (place / "tokenizer.json").write_text(json.dumps(tokenizer))
    (place / "tokenizer_config.json").write_text("{}")
    return place


def load(place: Path) -> Values:
    with Checkpoint(place) as model:
        return {name: model.array(name) for name in model}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base, two models tuned from it, and recipes for them."""
    base = values(0)
    save(tmp_path / "base", base)
    save(tmp_path / "north", values(1, base))
    save(tmp_path / "sofia", values(2, base))
    monkeypatch.chdir(tmp_path)
    recipe("linear.yaml", merge_method="linear", models=[model("north"), model("sofia", weight=3.0)])
    thinned = [model(name, weight=1.0, density=0.5) for name in ("north", "sofia")]
    recipe("ties.yaml", merge_method="ties", base_model="base", models=thinned)
    recipe("dare.yaml", merge_method="dare_ties", base_model="base", models=thinned)
    return tmp_path


def model(name: str, **parameters: float) -> dict[str, object]:
    return {"model": name, "parameters": parameters or {"weight": 1.0}}


def recipe(file: str, **said: object) -> None:
    Path(file).write_text(yaml.safe_dump({"dtype": "float32", **said}, sort_keys=False))


def run(*words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["merge", *words], prog_name="sprachbund", env={"COLUMNS": "250"})
    assert result.exit_code == code, result.output
    return result


def test_a_recipe_of_mergekit_becomes_a_model(here: Path) -> None:
    result = run("linear.yaml", "merged")
    north, sofia, merged = load(here / "north"), load(here / "sofia"), load(here / "merged")
    for name in SHAPES:
        np.testing.assert_allclose(merged[name], (north[name] + 3 * sofia[name]) / 4, rtol=1e-6, atol=1e-7)
    assert sorted(path.name for path in (here / "merged").iterdir()) == [
        "README.md",
        "checksums.json",
        "config.json",
        "mergekit_config.yml",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    digest = checksums_of(here / "merged").digest
    assert result.stdout.startswith(f"merged: weights {digest}, 7 files, ")
    assert "config and tokenizer are those of north" in result.stderr


def test_the_recipe_beside_the_model_makes_it_again(here: Path) -> None:
    run("dare.yaml", "first", "--random-seed", "5", "--out-shard-size", "30")
    assert len(list((here / "first").glob("model-*.safetensors"))) == 4
    Path("again.yaml").write_bytes((here / "first/mergekit_config.yml").read_bytes())
    run("again.yaml", "second", "-j", "1")
    run("dare.yaml", "other", "--random-seed", "6")
    files = {place: sorted(here.glob(f"{place}/*.safetensors")) for place in ("first", "second")}
    assert [ref_of(path) for path in files["first"]] == [ref_of(path) for path in files["second"]]
    assert checksums_of(here / "first").digest != checksums_of(here / "other").digest


def test_the_one_call_gives_the_same_bytes_as_the_command(here: Path) -> None:
    run("ties.yaml", "by-command")
    result = merge_recipe("ties.yaml", "by-call", threads=1)
    assert ref_of(here / "by-call/model.safetensors") == ref_of(here / "by-command/model.safetensors")
    assert result.checksums.digest == checksums_of(here / "by-command").digest


def test_scripts_get_one_line_of_json_and_nothing_else(here: Path) -> None:
    result = run("ties.yaml", "merged", "--json", "--cuda")
    said = json.loads(result.stdout)
    assert (said["out_dir"], said["digest"]) == ("merged", checksums_of(here / "merged").digest)
    assert any("lowest index" in sentence for sentence in said["compared_with_mergekit"])
    assert result.stderr == ""


def test_files_that_were_not_wanted_are_not_there(here: Path) -> None:
    run("linear.yaml", "merged", "--no-copy-tokenizer", "--no-write-model-card", "--quiet")
    names = {path.name for path in (here / "merged").iterdir()}
    assert names == {"checksums.json", "config.json", "mergekit_config.yml", "model.safetensors"}


def test_a_model_card_tells_inputs_recipe_and_comparison(here: Path) -> None:
    run("ties.yaml", "merged")
    card = (here / "merged/README.md").read_text()
    assert "| `north` | model | `{weight: 1.0, density: 0.5}` |" in card
    assert "arXiv:2306.01708" in card and "lowest index" in card and "merge_method: ties" in card
    assert checksums_of(here / "merged").digest in card and str(here) not in card


def test_a_base_that_is_linear_among_others_gives_config_and_tokenizer(here: Path) -> None:
    (here / "sofia/chat_template.jinja").write_text("{{ sofia }}")
    recipe("r.yaml", merge_method="linear", base_model="sofia", models=[model("north"), model("sofia")])
    run("r.yaml", "merged")
    assert (here / "merged/chat_template.jinja").read_text() == "{{ sofia }}"
    recipe("r.yaml", merge_method="linear", models=[model("north"), model("sofia")])
    run("r.yaml", "plain")
    assert not (here / "plain/chat_template.jinja").exists()


def test_a_template_in_the_recipe_is_written_and_a_name_is_not_understood(here: Path) -> None:
    models = [model("north"), model("sofia")]
    recipe("r.yaml", merge_method="linear", models=models, chat_template="{{ messages }}")
    run("r.yaml", "merged")
    assert (here / "merged/chat_template.jinja").read_text() == "{{ messages }}"
    recipe("r.yaml", merge_method="linear", models=models, chat_template="chatml")
    assert "write the template itself" in run("r.yaml", "other", code=2).stderr


def test_the_output_has_the_dtype_of_the_inputs_unless_told(here: Path) -> None:
    for name in ("north", "sofia"):
        save(here / f"{name}-half", load(here / name), dtype="BF16")
    recipe("r.yaml", merge_method="linear", models=[model("north-half"), model("sofia-half")], dtype=None)
    run("r.yaml", "merged")
    with Checkpoint(here / "merged") as merged:
        assert {info.dtype for info in merged.values()} == {"BF16"}
    assert json.loads((here / "merged/config.json").read_text())["dtype"] == "bfloat16"


def test_options_of_mergekit_without_meaning_are_named_in_one_line(here: Path) -> None:
    result = run(
        "linear.yaml", "merged", "--cuda", "--lazy-unpickle", "--no-async-write", "--trust-remote-code"
    )
    [line] = [line for line in result.stderr.splitlines() if line.startswith("without effect here:")]
    assert [word in line for word in ("--cuda", "--lazy-unpickle", "--trust-remote-code")] == [True] * 3
    assert "--async-write" not in line
    assert "without effect" not in run("linear.yaml", "quiet", "--cuda", "--quiet").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--unsafe-truncate-embeddings",), "give the models one tokenizer"),
        (("--no-safe-serialization",), "safetensors load everywhere"),
    ],
)
def test_options_that_would_change_the_result_are_refused(
    here: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in run("linear.yaml", "merged", *words, code=4).stderr
    assert not (here / "merged").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("linear.yaml",), "Missing argument 'OUT_DIR'"),
        (("linear.yaml", "m", "--out-shard-size", "5G"), "no number of parameters"),
        (("linear.yaml", "m", "--out-shard-size", "0"), "no number of parameters"),
        (("linear.yaml", "m", "--by-layer"), "go with --inspect"),
        (("linear.yaml", "--check", "--inspect"), "give one of them"),
        (("nowhere.yaml", "m"), "nowhere.yaml"),
    ],
)
def test_what_cannot_be_meant_is_an_error(here: Path, words: tuple[str, ...], said: str) -> None:
    result = CliRunner().invoke(app, ["merge", *words], env={"COLUMNS": "250"})
    assert result.exit_code in (2, 5) and said in result.stderr


def test_an_output_that_is_there_is_not_touched(here: Path) -> None:
    assert "base: exists already" in run("linear.yaml", "base", code=2).stderr


def test_a_failed_merge_leaves_nothing(here: Path) -> None:
    broken = load(here / "sofia")
    broken["model.norm.weight"][2] = np.nan
    save(here / "broken", broken)
    recipe("r.yaml", merge_method="linear", models=[model("north"), model("broken")])
    before = sorted(here.iterdir())
    assert "'model.norm.weight' is nan at element 2" in run("r.yaml", "merged", code=2).stderr
    assert sorted(here.iterdir()) == before


def test_models_of_different_tokenizers_are_refused_with_their_names(here: Path) -> None:
    save(here / "foreign", values(3), vocabulary="b")
    recipe("r.yaml", merge_method="linear", models=[model("north"), model("foreign")])
    result = run("r.yaml", "merged", code=4)
    assert "north and foreign have different tokenizers (tokenizer.json)" in result.stderr


def test_a_model_without_tokenizer_is_merged_and_named(here: Path) -> None:
    (here / "sofia/tokenizer.json").unlink()
    assert "sofia: no tokenizer file to compare" in run("linear.yaml", "merged").stderr


def test_pins_hold_models_to_their_weights(here: Path) -> None:
    pins = {name: checksums_of(here / name).digest for name in ("base", "north")}
    models = [model("north"), model("sofia")]

    def pinned(base: Digest, north: Digest) -> None:
        block = {"base_digest": base, "inputs": {"north": {"digest": north}}}
        recipe("r.yaml", merge_method="ties", base_model="base", models=models, sprachbund=block)

    pinned(pins["base"], pins["north"])
    run("r.yaml", "merged")
    pinned(pins["base"], pins["base"])
    assert "model north: its weights have digest" in run("r.yaml", "other", code=3).stderr
    pinned(pins["north"], pins["north"])
    assert "model base: its weights have digest" in run("r.yaml", "other", code=3).stderr


def test_contributions_of_sites_are_inputs_like_models(here: Path) -> None:
    with Checkpoint(here / "base") as base:
        ref = write_delta(base, load(here / "north"), Path("north.delta"), "fp32")
        write_delta(base, load(here / "sofia"), Path("sofia.delta"), "fp32")
    pins = {
        "north.delta": {"kind": "delta", "tokens": 100, "digest": ref.digest, "languages": ["nb"]},
        "sofia.delta": {"kind": "delta", "tokens": 300, "languages": ["bg"]},
    }
    models = [{"model": name} for name in pins]
    block = {"weights": "tokens", "inputs": pins}
    recipe("r.yaml", merge_method="linear", base_model="base", models=models, sprachbund=block)
    run("r.yaml", "merged")
    run("linear.yaml", "plain")
    for name, array in load(here / "plain").items():
        np.testing.assert_allclose(load(here / "merged")[name], array, rtol=1e-5, atol=1e-6)
    assert "3 tensors" not in run("--inspect", "r.yaml", "merged2").stdout
    assert (here / "merged2-inspect.svg").read_text().startswith("<svg")


def test_check_says_what_would_be_done_and_writes_nothing(here: Path) -> None:
    before = sorted(here.iterdir())
    result = run("ties.yaml", "merged", "--check")
    assert "ties: north, sofia onto base" in result.stdout
    assert "100 parameters in 5 tensors, as float32: 400 bytes in 1 file(s)" in result.stdout
    assert "ties.yaml:" in result.stdout and "lowest index" in result.stdout
    assert sorted(here.iterdir()) == before
    assert json.loads(run("ties.yaml", "--check", "--json").stdout)["parameters"] == 100


def test_check_warns_where_a_robust_rule_would_delete_a_language(here: Path) -> None:
    models = [model(name) for name in ("north", "sofia")]
    pins = {"north": {"languages": ["nb"]}, "sofia": {"languages": ["bg"]}}
    for cohorts, said in (
        ("languages", "cohort bg: 1 of the 3"),
        ("all", "deletes what only one of them knows"),
    ):
        block = {"cohorts": cohorts, "inputs": pins}
        recipe("r.yaml", merge_method="coordinate_median", base_model="base", models=models, sprachbund=block)
        assert said in run("r.yaml", "--check").stdout


def test_inspect_tells_the_numbers_of_the_deltas_and_draws_them(here: Path) -> None:
    result = run("--inspect", "ties.yaml", "--json")
    said = json.loads(result.stdout)
    base, north, sofia = (load(here / name) for name in ("base", "north", "sofia"))
    a, b = (np.concatenate([(one[n] - base[n]).ravel() for n in sorted(SHAPES)]) for one in (north, sofia))
    whole = said["groups"][0]
    assert [group["name"] for group in said["groups"]] == [
        "whole model",
        "embeddings",
        "block 0",
        "block 1",
        "norm and head",
    ]
    assert whole["norms"] == pytest.approx([np.linalg.norm(a), np.linalg.norm(b)], rel=1e-6)
    assert whole["cosines"][0][1] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6)
    assert whole["base_norm"] == pytest.approx(
        np.sqrt(sum((one**2).sum() for one in base.values())), rel=1e-6
    )
    assert (here / "inspect.svg").exists()
    told = run("--inspect", "linear.yaml", "--picture", "p.svg", "--by-layer")
    assert (
        "whole weights: the recipe has no base" in told.stdout and "block 1" in (here / "p.svg").read_text()
    )


def test_slices_are_inspected_where_their_inputs_meet(here: Path) -> None:
    def slice_of(layer: int, *names: str) -> dict[str, object]:
        return {"sources": [{"model": name, "layer_range": [layer, layer + 1], **weigh} for name in names]}

    weigh = {"parameters": {"weight": 1.0}}
    recipe("r.yaml", merge_method="linear", slices=[slice_of(1, "north"), slice_of(1, "north", "sofia")])
    groups = {one["name"]: one for one in json.loads(run("--inspect", "r.yaml", "--json").stdout)["groups"]}
    assert groups["block 0"]["norms"][1] == 0.0 and groups["block 0"]["cosines"][0][1] is None
    assert groups["block 1"]["norms"][1] > 0.0 and groups["block 1"]["cosines"][0][1] is not None
    assert groups["block 0"]["norms"][0] == groups["block 1"]["norms"][0]


def test_export_is_for_mergekit_and_says_what_it_lost(here: Path) -> None:
    block = {"seed": 9, "guards": {"clip": 2.0}}
    recipe("r.yaml", merge_method="dare_ties", base_model="base", models=[model("north")], sprachbund=block)
    result = run("r.yaml", "--export", "out.yaml")
    assert "the guards" in result.stdout and "--random-seed 9" in result.stdout
    assert "sprachbund" not in yaml.safe_load(Path("out.yaml").read_text())
    assert "out.yaml: exists already" in run("r.yaml", "--export", "out.yaml", code=2).stderr


def test_models_are_found_in_the_folders_that_are_given(here: Path) -> None:
    Path("store/org").mkdir(parents=True)
    (here / "north").rename(here / "store/org/north")
    recipe("r.yaml", merge_method="linear", models=[model("org/north"), model("sofia")])
    assert "org/north" in run("r.yaml", "merged", code=2).stderr
    run("r.yaml", "merged", "--models-dir", "elsewhere", "--models-dir", "store")


def test_neither_the_command_nor_its_help_loads_torch(here: Path) -> None:
    code = (
        "import sys; from console.main import main; sys.argv = ['sprachbund', 'merge', *{words}]\n"
        "try: main()\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "print(sorted({heavy} & set(sys.modules)), file=sys.stderr)"
    )
    for words, heavy in (
        (["--help"], {"torch", "grpc", "numpy", "transformers"}),
        (["linear.yaml", "merged", "--quiet"], {"torch", "grpc", "transformers", "safetensors"}),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code.format(words=words, heavy=heavy)], capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stderr.splitlines()[-1] == "[]", done.stderr
