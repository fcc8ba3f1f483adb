"""Languages, membership and licences: what each rule says of real cases, and what a broken rule file says."""

from pathlib import Path

import pytest

from consortium.errors import BadInput
from policies.languages import load_languages
from policies.licences import load_licences
from policies.membership import load_membership

OFFICIAL = "bg cs da de el en es et fi fr ga hr hu it lt lv mt nl pl pt ro sk sl sv"
CANDIDATES = "bs cnr ka mk sq sr tr uk"


def test_all_languages_of_the_design_are_there() -> None:
    languages = load_languages()
    tiers = {
        tier: [one.code for one in languages.languages if one.tier == tier]
        for tier in ("official", "candidate", "associated")
    }
    assert tiers == {
        "official": OFFICIAL.split(),
        "candidate": CANDIDATES.split(),
        "associated": ["is", "no"],
    }
    assert languages.find(languages.normalise("nb")).english == "Norwegian"
    with pytest.raises(BadInput, match="'nb' is not a language of this consortium"):
        languages.find("nb")  # type: ignore[arg-type]


HPLT = """
bul_Cyrl ces_Latn dan_Latn deu_Latn ell_Grek eng_Latn spa_Latn ekk_Latn fin_Latn fra_Latn gle_Latn hrv_Latn hun_Latn
ita_Latn lit_Latn lvs_Latn mlt_Latn nld_Latn pol_Latn por_Latn ron_Latn slk_Latn slv_Latn swe_Latn
bos_Latn cnr_Latn kat_Geor mkd_Cyrl als_Latn srp_Cyrl tur_Latn ukr_Cyrl isl_Latn nob_Latn nno_Latn
"""


def test_every_tag_of_the_large_data_sets_is_understood() -> None:
    languages = load_languages()
    assert [languages.normalise(tag) for tag in HPLT.split()] == [
        *OFFICIAL.split(),
        *CANDIDATES.split(),
        "is",
        "no",
        "no",
    ]


@pytest.mark.parametrize(
    ("tag", "code"),
    [
        *(
            ("no", "no"),
            ("NO", "no"),
            ("nb-NO", "no"),
            ("nn_NO", "no"),
            ("sr@latin", "sr"),
            ("sr-Latn-RS", "sr"),
        ),
        *(("pt_BR", "pt"), ("es-419", "es"), ("mo", "ro"), ("ger", "de"), ("est", "et"), ("EKK_LATN", "et")),
    ],
)
def test_other_spellings(tag: str, code: str) -> None:
    assert load_languages().normalise(tag) == code


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("hbs_Latn", "'hbs_Latn' could be several languages; write the one it is: bs, cnr, hr, sr"),
        ("ukr_Latn", "'ukr_Latn': Ukrainian is written in Cyrl; use text in that"),
        ("bg@latin", "'bg@latin': Bulgarian is written in Cyrl; use text in that"),
        ("de-DE-1996", "'de-DE-1996': subtag '1996' means nothing to us; write 'de'"),
        ("cnrr", "'cnrr' is not a language of this consortium; did you mean 'cnr'?"),
    ],
)
def test_tags_that_would_be_guesses_are_refused(tag: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_languages().normalise(tag)
    assert str(caught.value) == message


def test_a_tag_belongs_to_one_language(tmp_path: Path) -> None:
    file = tmp_path / "languages.yaml"
    file.write_text(
        "languages:\n"
        "  - {code: no, english: Norwegian, own: norsk, scripts: [Latn], tier: associated, aliases: [nn]}\n"
        "  - {code: nn, english: Nynorsk, own: nynorsk, scripts: [Latn], tier: associated}\n"
        "ambiguous: {sh: [sr]}\n"
    )
    with pytest.raises(BadInput) as caught:
        load_languages(file)
    assert str(caught.value) == (
        f"{file}:3: languages[1]: tag 'nn' is taken by 'no'; use each once\n"
        f"{file}:4: ambiguous.sh: 'sr' is not the code of a language above; write one that is"
    )


def test_who_may_join_and_why_not() -> None:
    rule = load_membership()
    assert rule.judge("no").reason == "NO may join: member of the European Economic Area"
    assert rule.judge("EL").reason == "GR may join: member state of the European Union"
    allowed = [country for group in rule.groups if group.may_join for country in group.countries]
    assert len(allowed) == 27 + 9 + 3 + 3
    assert all(rule.judge(country).allowed for country in allowed)
    assert not rule.judge("RU").allowed
    outside = rule.judge("US")
    assert not outside.allowed
    assert outside.reason.startswith("US may not join: it is neither in the European Union")
    with pytest.raises(BadInput, match="country 'Norway' is not a code; write the two letters"):
        rule.judge("Norway")


def test_a_country_stands_in_one_group(tmp_path: Path) -> None:
    file = tmp_path / "membership.yaml"
    file.write_text(
        "otherwise: no\ngroups:\n"
        "  - {name: in, title: inside, may_join: true, countries: [NO, Norway]}\n"
        "  - {name: out, title: outside, may_join: false, countries: [NO]}\n"
    )
    with pytest.raises(BadInput) as caught:
        load_membership(file)
    assert str(caught.value) == (
        f"{file}:3: groups[0].countries[1]: 'Norway' is not a code; write the two letters of ISO 3166-1, such as BG\n"
        f"{file}:4: groups[1].countries[0]: 'NO' is in group 'in' already; keep one"
    )


def test_what_a_licence_allows() -> None:
    licences = load_licences()
    assert licences.judge("CC-BY-SA-4.0", "public").allowed
    assert licences.judge("LicenseRef-hplt", "public").allowed
    assert not licences.class_of("LicenseRef-hplt").text_may_leave
    assert licences.judge("LicenseRef-publisher-x", "private").reason == (
        "LicenseRef-publisher-x is private, which may be private text"
    )
    assert licences.judge("CC-BY-NC-4.0", "public").reason == (
        "CC-BY-NC-4.0 is restricted, which may not be replayed as public text; write 'access: private'"
    )
    with pytest.raises(BadInput) as caught:
        licences.judge("CC-BY-SA-4", "public")
    assert str(caught.value) == (
        "licence 'CC-BY-SA-4' is not in our list; did you mean 'CC-BY-SA-4.0'? "
        "For a contract of your own write LicenseRef-<name>"
    )


def test_a_licence_names_a_class(tmp_path: Path) -> None:
    file = tmp_path / "licences.yaml"
    file.write_text(
        "classes:\n  - {name: open, text_may_leave: true, replay: true, attribution: true}\nlicences: {MIT: opne}\n"
    )
    with pytest.raises(BadInput) as caught:
        load_licences(file)
    assert str(caught.value) == (
        f"{file}:1: classes: no class is called 'private', which an unlisted LicenseRef- falls into; add it\n"
        f"{file}:3: licences.MIT: no class is called 'opne'; did you mean 'open'?"
    )
