"""What others are told of a site's text, and whether it is still true."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from text_samples import sentence
from typer.testing import CliRunner

from console.app import app
from console.main import COMMANDS
from consortium.errors import BadInput
from policies.licences import load_licences
from site_agent.config import load_site_config
from site_agent.data.manifest import read_manifest
from site_agent.data.verifying import verify

WIDE = {"COLUMNS": "200"}  # paths of tests are long


def call(*arguments: object) -> Any:
    assert COMMANDS
    return CliRunner().invoke(app, ["data", *map(str, arguments)], prog_name="sprachbund", env=WIDE)


@pytest.fixture(scope="module")
def made(site_yaml: Path, tokenizer_json: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "site"
    shutil.copytree(site_yaml.parent, folder)
    result = call("prepare", folder / "site.yaml", "--tokenizer", tokenizer_json, "--processes", 2)
    assert result.exit_code == 0, result.output
    return folder / "site.yaml"


@pytest.fixture
def site(made: Path, tokenizer_json: Path, tmp_path: Path) -> Path:
    """One of its own, that may be spoilt."""
    shutil.copytree(made.parent / "text", tmp_path / "site" / "text")
    shutil.copy(made, tmp_path / "site")
    site = tmp_path / "site" / "site.yaml"
    assert call("prepare", site, "--tokenizer", tokenizer_json, "--processes", 1).exit_code == 0
    return site


def test_the_manifest_says_what_there_is_and_what_nobody_said(made: Path) -> None:
    document = read_manifest(load_site_config(made))
    held = {entry["name"]: entry for entry in document["sb:holding"]}
    assert list(held) == ["et.private", "et.public", "fi.private", "fi.public"]
    public = held["et.public"]
    assert (public["sb:documents"], public["sb:repeatedDocuments"]) == (297, 10)
    assert public["isBasedOn"] == [
        {
            "@type": "sc:Dataset",
            "license": "LicenseRef-hplt",
            "name": "HPLT",
            "sb:optedOutDocuments": "left out",
            "sb:otherLanguages": "kept",
            "sb:redistribution": "open-web",
            "sb:retention": "2030-12-31",
            "sb:robots": "pages that robots.txt allows",
            "sb:textMayLeave": False,
        }
    ]
    (own,) = held["et.private"]["isBasedOn"]
    assert own["sb:redistribution"] == "restricted"
    assert own["name"] == own["sb:robots"] == own["sb:retention"] == "not said by the site"
    tokens = {entry["inLanguage"]: entry["sb:tokens"] for entry in document["sb:prepared"]}
    assert tokens.keys() == {"et", "fi"} and all(tokens.values())
    assert len(document["distribution"]) == 14


def test_the_example_in_the_guide_is_what_is_printed(made: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    example = json.loads(guide.split("```json\n")[1].split("```")[0])
    assert example in read_manifest(load_site_config(made))["sb:holding"]


def test_nothing_leaves_that_names_a_file_or_holds_text(made: Path) -> None:
    data = (made.parent / "home" / "croissant.json").read_text(encoding="utf-8")
    for secret in (str(made.parent), "5_1.jsonl", "CC-MAIN-0", "own.txt", *sentence(1).split()[:3]):
        assert secret not in data


def test_it_is_croissant(made: Path) -> None:
    croissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed")
    document = json.loads((made.parent / "home" / "croissant.json").read_bytes())
    assert not croissant.Dataset(jsonld=document).metadata.ctx.issues.errors


def test_the_manifest_is_a_function_of_text_and_config(made: Path, site: Path) -> None:
    """Nor of the number of processes, nor of the place."""
    one, other = (path.parent / "home" / "croissant.json" for path in (made, site))
    assert one.read_bytes() == other.read_bytes()


def test_progress_is_json_lines(site: Path, tokenizer_json: Path) -> None:
    shutil.rmtree(site.parent / "home")
    result = call(
        "prepare", site, "--tokenizer", tokenizer_json, "--processes", 1, "--languages", "fin_Latn", "--json"
    )
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    steps = [line["progress"] for line in lines[:-1]]
    assert {step["language"] for step in steps} == {"fi"}
    assert steps[-1]["is_done"] and steps[-1]["read_bytes"] == steps[-1]["all_bytes"] > 0
    assert lines[-1]["manifest"]["sb:notSurveyed"] == ["et"]
    assert call("prepare", site, "--languages", "el").exit_code == BadInput.exit_code


def test_text_alone_can_be_described(site: Path) -> None:
    shutil.rmtree(site.parent / "home")
    assert call("prepare", site, "--processes", 1).exit_code == 0
    document = read_manifest(load_site_config(site))
    assert len(document["sb:holding"]) == 4
    assert document["sb:prepared"] == document["distribution"] == []
    assert call("verify", site).exit_code == 0
    shown = call("show", site).output
    assert "5_1.jsonl.zst:151: not JSON" in " ".join(shown.split())
    assert "4 left out" in shown


def test_all_is_well(made: Path) -> None:
    result = call("verify", made, "--text", "--processes", 1, "--json")
    assert result.exit_code == 0
    checks = json.loads(result.stdout)
    assert all(check["is_good"] for check in checks)
    names = [
        "manifest",
        "text et",
        "text fi",
        "tokens et",
        "tokens fi",
        "text et read again",
        "text fi read again",
    ]
    assert [check["name"] for check in checks] == names


def bad(site: Path, **how: Any) -> dict[str, int]:
    return {one.name: one.exit_code for one in verify(load_site_config(site), **how) if not one.is_good}


def test_a_changed_byte_of_tokens_is_found(site: Path) -> None:
    path = next(site.parent.glob("home/text/tokens/et-*/public.bin"))
    data = bytearray(path.read_bytes())
    data[17] ^= 1
    path.write_bytes(data)
    assert bad(site) == {"tokens et": 3}
    assert bad(site, digests=False) == {}
    path.write_bytes(data[:-2])
    assert bad(site, digests=False) == {"tokens et": 3}
    path.unlink()
    assert bad(site, digests=False) == {"tokens et": 5}


def test_changed_text_is_found_even_behind_the_clock(site: Path) -> None:
    path = site.parent / "text" / "own.txt"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"maja", b"baja"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert bad(site) == {}
    assert bad(site, text=True) == {"text et read again": 3}
    os.utime(path, ns=(1, 1))
    assert bad(site)["text et"] == 5
    (site.parent / "text" / "fi.parquet").unlink()
    assert bad(site)["text fi"] == 2


def test_a_manifest_that_is_none_is_said(site: Path) -> None:
    path = site.parent / "home" / "croissant.json"
    for data, code in ((b"{}", 3), (b"\xff", 3), (b"[]", 3)):
        path.write_bytes(data)
        assert bad(site) == {"manifest": code}
    document = json.loads((site.parent / "home" / "croissant.json").read_bytes() or b"[]")
    assert document == []
    path.unlink()
    assert bad(site) == {"manifest": 2}
    assert call("show", site).exit_code == 2


def test_a_manifest_cannot_make_us_look_elsewhere(site: Path) -> None:
    path = site.parent / "home" / "croissant.json"
    document = json.loads(path.read_bytes())
    document["distribution"][0]["contentUrl"] = "../../../../../etc/hostname"
    path.write_text(json.dumps(document))
    assert any(
        one.detail.endswith(f"below {site.parent}/home/text") for one in verify(load_site_config(site))
    )


def test_a_new_licence_is_told_without_reading_again(site: Path) -> None:
    site.write_text(site.read_text().replace("LicenseRef-hplt", "LicenseRef-common-crawl"))
    assert bad(site) == {"manifest": 5}
    result = call("prepare", site, "--processes", 1, "--json")
    assert [line for line in result.stdout.splitlines() if "progress" in line] == []
    assert bad(site) == {}


def test_text_that_is_gone_leaves_tokens_that_may_be_removed(site: Path) -> None:
    (site.parent / "text" / "own.txt").write_text("Midagi muud.\n")
    assert call("prepare", site, "--processes", 1).exit_code == 0
    assert "of other text, may be removed" in call("show", site).output.replace("\n", " ")
    document = read_manifest(load_site_config(site))
    assert [entry["inLanguage"] for entry in document["sb:prepared"]] == ["fi"]


@pytest.mark.parametrize(
    ("licence", "said", "wanted"),
    [
        ("CC0-1.0", None, "public-domain"),
        ("CC0-1.0", "private", "private"),
        ("LicenseRef-library", None, "private"),
        ("LicenseRef-library", "share-alike", "share-alike"),
        ("LicenseRef-hplt", "permissive", "allows less than permissive; write 'open-web'"),
        ("CC-BY-NC-4.0", "open-web", "allows less"),
        ("CC0-1.0", "free", "no redistribution class is called 'free'"),
    ],
)
def test_the_class_of_redistribution(licence: str, said: str | None, wanted: str) -> None:
    licences = load_licences()
    try:
        found = licences.redistribution(licence, said).name
    except BadInput as error:
        found = str(error)
    assert wanted in found
