"""What operators write, for a site and for the coordinator; and that all our examples load."""

from pathlib import Path

import pytest

from consortium.errors import BadInput
from consortium.ids import Language
from consortium.jobs import Purpose
from coordinator.config import load_coordinator_config
from policies.reading import load_campaign
from site_agent.config import Consent, Text, load_site_config

EXAMPLES = Path(__file__).parents[2] / "examples"


def written(folder: Path, text: str) -> Path:
    file = folder / "f.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_examples_load() -> None:
    for path in sorted(EXAMPLES.glob("campaign-*.yaml")):
        assert load_campaign(path).notes == ()
    tiny = load_campaign(EXAMPLES / "campaign-tiny.yaml").campaign
    assert tiny.languages == ("bg", "cs", "da", "el", "fi", "ga", "hu", "nl")
    site = load_site_config(EXAMPLES / "site.yaml")
    assert [text.language for text in site.text] == ["bg", "mk", "en", "el"]
    balkan = load_campaign(EXAMPLES / "campaign-balkan.yaml").campaign
    assert site.site in balkan.sites
    assert site.consent.campaigns == (balkan.campaign,)
    assert load_coordinator_config(EXAMPLES / "coordinator.yaml").names == ("coordinator.example.eu",)


def test_a_site_with_norwegian_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ola")
    site = load_site_config(
        written(
            tmp_path,
            "site: oslo\ncoordinator: c.example.eu:7443\nenrolment: '[::1]:7444'\nhome: state\n"
            "text:\n"
            "  - {language: no, path: no, access: private, licence: CC-BY-NC-4.0}\n"
            "  - {language: nn, path: ~/nn.jsonl, access: public, licence: CC0-1.0, id_field: id}\n"
            "consent: {languages: [nb, is], purposes: [round, gate], campaigns: []}\n",
        )
    )
    assert site.home == str(tmp_path / "state")
    assert site.text == (
        Text(language=Language("no"), path=str(tmp_path / "no"), access="private", licence="CC-BY-NC-4.0"),
        Text(
            language=Language("no"),
            path="/home/ola/nn.jsonl",
            access="public",
            licence="CC0-1.0",
            id_field="id",
        ),
    )
    assert site.consent == Consent(
        campaigns=(), languages=(Language("is"), Language("no")), purposes=(Purpose.ROUND, Purpose.GATE)
    )


def test_everything_wrong_with_a_site_is_said_at_once(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "site: Oslo\ncoordinator: c.example.eu:7443\nenrolment: c.example.eu:7444\nhome: state\n"
        "text:\n"
        "  - {language: hbs, path: a, access: private, licence: MITT}\n"
        "  - {language: fi, path: a, access: public, licence: CC-BY-NC-4.0}\n"
        "consent:\n  languages: [fi, fin]\n  campaigns: [A_B]\n",
    )
    with pytest.raises(BadInput) as caught:
        load_site_config(file)
    assert str(caught.value).replace(str(file), "f.yaml") == (
        "f.yaml:1: site: site name 'Oslo': use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'\n"
        "f.yaml:6: text[0].language: 'hbs' could be several languages; write the one it is: bs, cnr, hr, sr\n"
        "f.yaml:6: text[0].licence: licence 'MITT' is not in our list; did you mean 'MIT'? "
        "For a contract of your own write LicenseRef-<name>\n"
        "f.yaml:7: text[1].access: CC-BY-NC-4.0 is restricted, which may not be replayed as public text; "
        "write 'access: private'\n"
        "f.yaml:9: consent.languages[1]: 'fin' is 'fi' again, as 'fi' was; keep one\n"
        "f.yaml:10: consent.campaigns[0]: campaign name 'A_B': "
        "use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'"
    )


def test_coordinator_paths_are_beside_its_file(tmp_path: Path) -> None:
    config = load_coordinator_config(
        written(tmp_path, "consortium: nord\nhome: h\nmembership: /etc/m.yaml\nport: 0\nenrolment_port: 0\n")
    )
    assert (config.home, config.ledger) == (str(tmp_path / "h"), str(tmp_path / "h/ledger.sqlite"))
    assert (config.membership, config.languages) == ("/etc/m.yaml", None)


def test_the_coordinator_needs_two_ports_and_a_name(tmp_path: Path) -> None:
    file = written(tmp_path, "consortium: nord\nhome: h\nport: 7444\nnames: []\n")
    with pytest.raises(BadInput) as caught:
        load_coordinator_config(file)
    assert str(caught.value).replace(str(file), "f.yaml") == (
        "f.yaml:1: enrolment_port: 7444 is also 'port'; the two services need one each\n"
        "f.yaml:4: names: no name is given; write those that sites dial, such as coordinator.example.eu"
    )


def test_a_consortium_name_must_fit_into_certificates(tmp_path: Path) -> None:
    file = written(tmp_path, "consortium: The Nord\nhome: h\n")
    with pytest.raises(BadInput, match=r":1: consortium: consortium name 'The Nord': use 1 to 40 of a-z"):
        load_coordinator_config(file)
