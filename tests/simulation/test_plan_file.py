"""A plan's file becomes a consortium, or a list of everything that is wrong with it."""

import itertools
from pathlib import Path

import pytest

from consortium.canonical import digest_of_fact, replace
from consortium.errors import BadInput
from simulation.plan import faster
from simulation.reading import load_plan
from simulation.weather import PRESETS, fault_named, weather_of

EXAMPLES = Path(__file__).parents[2] / "examples/simulation"
CAMPAIGN = (Path(__file__).parents[2] / "examples/simulation/campaign-small.yaml").as_posix()
SMALL = EXAMPLES / "small.yaml"


def written(folder: Path, text: str) -> Path:
    file = folder / "plan.yaml"
    file.write_text(f"campaign: {CAMPAIGN}\nmodel_bytes: 1000\n{text}", encoding="utf-8")
    return file


def test_an_example_is_read_with_languages_sites_and_campaign() -> None:
    plan = load_plan(SMALL).plan
    assert [site.name for site in plan.sites] == ["brno", "dublin", "helsinki", "sofia"]
    assert plan.campaign.campaign == "small-1"
    assert plan.sites[1].languages["ga"].heldout == 300
    assert plan.sites[1].open_hours[0].timezone == "Europe/Dublin"
    assert plan.sites[3].granted is not None and plan.sites[3].granted.gpu_hours == 60
    assert plan.started_at == 1767571200.0


def test_public_text_of_the_plan_is_every_sites_that_names_none(tmp_path: Path) -> None:
    text = "public: {ell: {documents: 900}}\nsites: [{name: a}, {name: b, public: {mt: {documents: 300}}}]"
    assert [list(site.public) for site in load_plan(written(tmp_path, text)).plan.sites] == [["el"], ["mt"]]


def test_the_examples_mean_what_they_say() -> None:
    for file in ("small.yaml", "centres.yaml"):
        assert load_plan(EXAMPLES / file).notes == ()


def test_a_plan_does_not_remember_where_its_files_lay(tmp_path: Path) -> None:
    text = SMALL.read_text(encoding="utf-8").replace("campaign-small.yaml", CAMPAIGN)
    (tmp_path / "copied.yaml").write_text(text, encoding="utf-8")
    assert digest_of_fact(load_plan(tmp_path / "copied.yaml").plan) == digest_of_fact(load_plan(SMALL).plan)


def test_more_sites_are_drawn_and_the_first_of_them_stay_the_same() -> None:
    twelve, forty = load_plan(SMALL, 12).plan.sites, load_plan(SMALL, 40).plan.sites
    assert len(twelve) == 12 and len(forty) == 40
    assert set(map(digest_of_fact, twelve)) <= set(map(digest_of_fact, forty))
    assert load_plan(SMALL, 40).plan.sites == forty
    assert {"bulgarian-1", "danish-1", "danish-2", "irish-4"} <= {site.name for site in forty}
    own = [tag for site in twelve if site.name.endswith("-1") for tag in site.languages]
    assert sorted(own) == list(load_plan(SMALL).plan.campaign.languages)
    assert len({site.tokens_per_second for site in forty}) > 20


def test_everything_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        "sites:\n"
        "  - name: A Site\n"
        "    languages: {xx: {documents: 1000}}\n"
        "  - name: sofia\n"
        "    languages: {bg: {documents: 10, heldout: 10}}\n"
        "    windows: [{cron: 0 18 * * 1, hours: 4}]\n"
        "  - name: sofia\n"
        "    timezone: Europe/Nowhere\n",
    )
    with pytest.raises(BadInput) as failure:
        load_plan(file)
    said = str(failure.value).splitlines()
    assert [line.removeprefix(str(file)).split(" ")[0] for line in said] == [
        ":4:",
        ":5:",
        ":7:",
        ":8:",
        ":9:",
        ":10:",
    ]
    assert "'xx' is not a language of this consortium" in said[1]
    assert "10 of 10 documents leave none to train on; hold out fewer" in said[2]
    assert "'sofia' is another site's name; give each its own" in said[4]


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ("{}", None, ":1: 0 sites; a plan has 1 to 1000; name some under sites"),
        ("sites: [{name: a}]", 7, "--sites 7, but 1 are named and nothing says what others are like"),
        ("sites: [{name: a}, {name: b}]", 1, "--sites 1, but 2 are named here; ask for at least so many"),
        ("sites: [{name: a, tokens_per_second: 0}]", None, "sites[0].tokens_per_second: 0 does not fit"),
        ("start: yesterday\nsites: [{name: a}]", None, "write a moment in UTC, such as 2026-01-05T00:00:00Z"),
        ("sites: [{name: danish-1}]\ngenerate: {}", 5, "a drawn site is called 'danish-1', like a named one"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, text: str, wanted: int | None, said: str) -> None:
    with pytest.raises(BadInput, match=r"plan\.yaml:[0-9]+: ") as failure:
        load_plan(written(tmp_path, "" if text == "{}" else text), wanted)
    assert said in str(failure.value)


def test_a_broken_campaign_is_told_at_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "campaign.yaml").write_text("campaign: x\nrounds: none\n", encoding="utf-8")
    file = tmp_path / "plan.yaml"
    file.write_text("campaign: campaign.yaml\nmodel_bytes: 1\nsites: [{name: a}]\n", encoding="utf-8")
    with pytest.raises(BadInput, match=r"campaign\.yaml:2: rounds: 'none' \(text\) does not fit"):
        load_plan(file)


def test_what_is_seldom_meant_is_noted(tmp_path: Path) -> None:
    notes = load_plan(written(tmp_path, "sites: [{name: a, languages: {bg: {documents: 1000}}}]")).notes
    assert any("nobody has text of its own in cs, da, el, fi, ga, hu, nl" in note for note in notes)
    assert any("the campaign waits for 4 sites, and here are 1" in note for note in notes)


def test_speed_is_of_the_gpus_alone() -> None:
    plan = load_plan(SMALL).plan
    twice = faster(plan, 2.0)
    assert [site.tokens_per_second for site in twice.sites] == [520.0, 120.0, 1000.0, 240.0]
    assert twice.sites[0].queue_median_minutes == plan.sites[0].queue_median_minutes


def test_a_weather_is_a_preset_or_so_many_times_one() -> None:
    assert weather_of("rough") is PRESETS["rough"]
    wilder = weather_of("rough:1.5")
    assert wilder.name == "rough:1.5"
    assert (wilder.loss, wilder.crashes_per_day, wilder.partition_minutes) == (0.03, 1.5, 45.0)
    assert weather_of("storm:100").loss == 0.5


@pytest.mark.parametrize("text", ["rouhg", "rough:", "rough:-1", "rough:nan", ""])
def test_a_weather_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"did you mean 'rough'|the factor is a number|write one of: calm"):
        weather_of(text)


def test_faults_can_be_chosen_by_name_and_by_hour() -> None:
    rough = replace(PRESETS["rough"], begins_after_hours=10.0, clears_after_hours=20.0)
    name = fault_named("crash", "coordinator", 3)
    assert [rough.lets_fall(name, hours) for hours in (9.0, 10.0, 19.0, 20.0)] == [False, True, True, False]
    assert replace(rough, only=(name,)).lets_fall(name, 15.0)
    assert not replace(rough, only=()).lets_fall(name, 15.0)


def test_each_weather_is_at_least_as_wild_as_the_one_before() -> None:
    rates = [
        (w.loss, w.repeat, w.reorder, w.delay_seconds, w.partitions_per_day, w.crashes_per_day, w.site_faults)
        for w in PRESETS.values()
    ]
    assert all(a <= b for quiet, wild in itertools.pairwise(rates) for a, b in zip(quiet, wild, strict=True))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("start: 0000-00-00T00:00:00Z\nsites: [{name: a}]", "is no moment"),
        ("start: 9999-12-31T23:59:59Z\nsites: [{name: a}]", "the year 9999"),
        ("hours_max: 1e308\nsites: [{name: a}]", "hours_max: 1e.308 is beyond what is simulated"),
        ("sites: [{name: a, queue_sigma: 5000}]", r"sites\[0\].queue_sigma: 5000 is beyond"),
        ("sites: [{name: a, preempt_per_day: 1e308}]", "preempt_per_day: 1e.308 is beyond"),
        ("sites: [{name: a, walltime_minutes: 1e-300}]", "walltime_minutes: 1e-300 is beyond"),
        ("sites: [{name: a, slots: 1000000000000}]", "slots: 1e.12 is beyond"),
        ("sites: [{name: a, clock_skew_seconds: -1e300}]", "clock_skew_seconds: -1e.300 is beyond"),
        (
            "sites: [{name: a, outages: [{from_hours: 1e308, hours: 1}]}]",
            r"outages\[0\].from_hours: 1e.308 is",
        ),
    ],
)
def test_numbers_that_nobody_can_reckon_with_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        load_plan(written(tmp_path, text))
