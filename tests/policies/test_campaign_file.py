"""A campaign file: presets, sources and languages resolved, and everything that does not fit said with its line."""

from pathlib import Path

import pytest

from consortium.canonical import decode, encode, replace
from consortium.errors import BadInput
from consortium.merging.recipe import PLAIN_AVERAGE, OuterStep, Recipe, Setting
from policies.campaign import Admission, Campaign, Gate, ModelSource, TokenizerSource
from policies.consistency import missing_in, problems_in
from policies.reading import (
    PRESETS,
    CampaignFile,
    load_admission,
    load_campaign,
    load_gate,
    load_recipe,
    preset_names,
)

GOOD = """\
campaign: small-1
languages: [nob_Latn, fi]
sites_expected: 2
model:
  config: {model_type: llama, vocab_size: 512, hidden_size: 64, num_attention_heads: 4, max_position_embeddings: 128}
tokenizer:
  train: {vocabulary_size: 512, bytes_per_language: 1000}
seed_round:
  steps: 10
  optimizer: {learning_rate: 1e-3, warmup_steps: 10}
rounds: 2
train:
  steps: 20
  batch_sequences: 4
  sequence_tokens: 128
  optimizer: {learning_rate: 1e-3, warmup_steps: 5}
merge: diloco
"""
PRESET_NAMES = "average, dare-ties, diloco, fedadam, geometric-median, norm-preserving, ties, trimmed-mean"
MODEL = GOOD[GOOD.index("model:") : GOOD.index("tokenizer:")]
TOKENIZER = GOOD[GOOD.index("tokenizer:") : GOOD.index("seed_round:")]
SEED = GOOD[GOOD.index("seed_round:") : GOOD.index("rounds:")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def loaded(*changes: tuple[str, str]) -> CampaignFile:
    text = GOOD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    Path("c.yaml").write_text(text, encoding="utf-8")
    return load_campaign("c.yaml")


def test_a_campaign_holds_no_reference_to_any_file_and_survives_the_wire() -> None:
    read = loaded(("[nob_Latn, fi]", "[sr_Cyrl, no, fi]"))
    assert read.campaign.languages == ("fi", "no", "sr")
    assert read.campaign.model.config is not None
    assert read.campaign.tokenizer == TokenizerSource(vocabulary_size=512, bytes_per_language=1000)
    assert read.campaign.merge == Recipe(outer=OuterStep(learning_rate=0.7, momentum=0.9, nesterov=True))
    assert (read.model_directory, read.tokenizer_file, read.notes) == (None, None, ())
    assert missing_in(read.campaign) == ()
    assert decode(encode(read.campaign), Campaign) == read.campaign


def test_parameters_of_the_merge_are_written_as_short_as_mergekit_has_them() -> None:
    read = loaded(
        (
            "merge: diloco",
            """merge:
  preset: ties
  parameters:
    density: [{filter: mlp, value: [0.2, 0.8]}, {filter: "*", value: 1}]
    weight: [0, 1]
    lambda: 0.7
    normalize: false""",
        )
    )
    assert read.campaign.merge.parameters == {
        "density": (Setting(value=(0.2, 0.8), filter="mlp"), Setting(value=1)),
        "weight": (Setting(value=(0.0, 1.0)),),
        "lambda": (Setting(value=0.7),),
        "normalize": (Setting(value=False),),
    }
    one = loaded(("merge: diloco", "merge: {method: ties, parameters: {density: {filter: mlp, value: 0.5}}}"))
    assert one.campaign.merge.parameters == {"density": (Setting(value=0.5, filter="mlp"),)}


@pytest.mark.parametrize("name", preset_names("merge"))
def test_every_merge_preset_can_merge_a_small_campaign_without_a_note(name: str) -> None:
    notes = loaded(
        ("merge: diloco", f"merge: {name}\nquorum: {{minimum: 2}}"),
        ("sites_expected: 2", "sites_expected: 5"),
    ).notes
    assert notes == ()


@pytest.mark.parametrize(
    ("merge", "place", "word"),
    [
        ("{method: coordinate_median, cohorts: all}", "merge.cohorts", "deletes what only one site knows"),
        ("{method: krum, parameters: {byzantine: 2}}", "merge.method", "only among 7 contributions"),
        ("{method: multi_krum, parameters: {keep: 6}}", "merge.method", "only among 6 contributions"),
        ("{method: trimmed_mean, parameters: {trim: 0.1}}", "merge.method", "only among 10 contributions"),
        ("{method: linear, cohorts: all, guards: {cosine_min: 0}}", "merge.guards.cosine_min", "of another language"),
        ("{method: model_stock}", "merge.method", "gives back the base"),
        ("{method: dare_linear, parameters: {density: 0.1}}", "merge.parameters.density", "fine-tuning"),
    ],
)  # fmt: skip
def test_a_merge_that_is_seldom_meant_is_noted(merge: str, place: str, word: str) -> None:
    [note] = loaded(
        ("merge: diloco", f"merge: {merge}\nquorum: {{minimum: 2}}"),
        ("sites_expected: 2", "sites_expected: 5"),
    ).notes
    assert note.startswith("c.yaml:17: " + place) and word in note


def test_a_preset_may_be_changed_in_place_and_the_rest_of_it_stays() -> None:
    campaign = loaded(
        ("merge: diloco", "merge: {preset: average, outer: {momentum: 0.5}, weights: uniform}\n"
         "gate: {preset: strict, protected: [nb]}\nadmission: {norm_max: 0.2}"),
    ).campaign  # fmt: skip
    assert campaign.merge == Recipe(
        outer=OuterStep(learning_rate=1.0, momentum=0.5, nesterov=False), weights="uniform"
    )
    assert campaign.gate == replace(load_gate("strict"), protected=("no",))
    assert campaign.admission == Admission(norm_max=0.2)


def test_every_preset_loads_and_the_standard_ones_are_the_defaults() -> None:
    loaders = {"merge": load_recipe, "gate": load_gate, "admission": load_admission}
    for section in PRESETS:
        assert preset_names(section)
        assert len({encode(loaders[section](name)) for name in preset_names(section)}) == len(
            preset_names(section)
        )
    assert load_recipe("average") == PLAIN_AVERAGE == loaded(("merge: diloco\n", "")).campaign.merge
    assert load_recipe("diloco") == Recipe(outer=OuterStep())
    assert (load_gate("standard"), load_admission("standard")) == (Gate(), Admission())
    with pytest.raises(BadInput, match="no gate preset is called 'strikt'; did you mean 'strict'"):
        load_gate("strikt")


def test_a_model_directory_brings_its_own_tokenizer_and_is_left_for_submit(here: Path) -> None:
    (here / "m").mkdir()
    (here / "m/config.json").write_text('{"model_type": "llama", "max_position_embeddings": 256}')
    (here / "m/tokenizer.json").write_text("{}")
    read = loaded((MODEL, "model: {directory: m}\n"), (TOKENIZER, ""))
    assert read.model_directory == here / "m"
    assert read.tokenizer_file == here / "m/tokenizer.json"
    assert read.campaign.model == ModelSource()
    assert [place for place, _ in missing_in(read.campaign)] == [("model",), ("tokenizer",)]
    assert read.notes == ()
    (here / "own.json").write_text("{}")
    assert (
        loaded(
            (MODEL, "model: {directory: m}\n"), (TOKENIZER, "tokenizer: {file: own.json}\n")
        ).tokenizer_file
        == here / "own.json"
    )


def test_a_config_file_becomes_part_of_the_campaign(here: Path) -> None:
    (here / "config.json").write_text('{"model_type": "llama", "vocab_size": 600}')
    read = loaded((MODEL, "model: {config_file: config.json, seed: 7}\n"))
    assert read.campaign.model == ModelSource(config={"model_type": "llama", "vocab_size": 600}, seed=7)


def test_what_is_allowed_and_seldom_meant_is_noted() -> None:
    notes = loaded((SEED, ""), ("  steps: 20", "  replay_share: 0\n  steps: 20")).notes
    assert notes == (
        "c.yaml:4: model: every site starts round 1 from random weights, and what they learn apart merges badly; "
        "add seed_round, or give a trained model's directory",
        "c.yaml:10: train.replay_share: 0 means no public text, and specialists forget all other languages; "
        "we measured 0.5 to be good",
    )


def test_where_rounds_are_merged() -> None:
    plain = loaded().campaign
    assert (plain.merge_at, plain.merge_sites, plain.merge_check) == ("coordinator", (), "rebuild")
    read = loaded(("sites_expected: 2", "sites_expected: 2\nmerge_at: any\nmerge_sites: [oslo, bergen]"))
    assert (read.campaign.merge_at, read.campaign.merge_sites) == ("any", ("bergen", "oslo"))
    assert read.notes == ()


def test_a_round_that_is_over_before_its_bundles_are_back_is_noted() -> None:
    [note] = loaded(("sites_expected: 2", "sites_expected: 2\ncourier_lease_hours: 240")).notes
    assert note.startswith(
        "c.yaml:1: quorum.deadline_hours: a round waits 72 h for a job of which nothing is heard, fewer than the 240 h"
    )
    long = "sites_expected: 2\ncourier_lease_hours: 240\nquorum: {deadline_hours: 240}"
    assert loaded(("sites_expected: 2", long)).notes == ()


def test_merges_that_are_seldom_meant_are_noted() -> None:
    assert loaded(("sites_expected: 2", "sites_expected: 2\nmerge_sites: [oslo]")).notes == (
        "c.yaml:4: merge_sites: oslo will not merge: merge_at is coordinator; write site or any",
    )
    [note] = loaded(("sites_expected: 2", "sites_expected: 2\nmerge_at: site\nmerge_check: none")).notes
    assert note.startswith(
        "c.yaml:5: merge_check: none means that wrong weights from the merging site go to the gate"
    )


REFUSED = [
    ("sites_expected: 2", "sites_expected: 2\nmerge_sites: [oslo, Oslo, oslo]",
     "c.yaml:4: merge_sites: site name 'Oslo': use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'\n"
     "c.yaml:4: merge_sites: Oslo, oslo, oslo is not sorted, or has something twice; sort it and keep one of each"),
    ("sites_expected: 2", "sites_expected: 2\nmerge_at: sites",
     "c.yaml:4: merge_at: 'sites' is not one of the choices; write one of: any, coordinator, site"),
    ("languages: [nob_Latn, fi]", "languages: [nob_Latn, no, hbs, dq, ell_Latn]",
     "c.yaml:2: languages[1]: 'no' is 'no' again, as 'nob_Latn' was; keep one\n"
     "c.yaml:2: languages[2]: 'hbs' could be several languages; write the one it is: bs, cnr, hr, sr\n"
     "c.yaml:2: languages[3]: 'dq' is not a language of this consortium; write one of: bg, bs, cnr, cs, da, de, el, en,"
     " es, et, fi, fr, ga, hr, hu, is, it, ka, lt, lv, mk, mt, nl, no, pl, pt, ro, sk, sl, sq, sr, sv, tr, uk\n"
     "c.yaml:2: languages[4]: 'ell_Latn': Greek is written in Grek; use text in that"),
    ("languages: [nob_Latn, fi]", "languages: []",
     "c.yaml:2: languages: an empty list does not fit; write a list (at least 1 item)"),
    ("campaign: small-1", "campaign: Small 1",
     "c.yaml:1: campaign: campaign name 'Small 1': use 1 to 40 of a-z, 0-9 and '-', not starting or ending with '-'"),
    ("sites_expected: 2", "sites: [oslo]\nsites_expected: 2",
     "c.yaml:4: sites_expected: 2 exceeds the 1 of sites; lower it, or name more sites"),
    ("sites_expected: 2", "sites: [oslo, bergen, oslo]",
     "c.yaml:3: sites: bergen, oslo, oslo is not sorted, or has something twice; sort it and keep one of each"),
    ("merge: diloco", "quorum:\n  minimum: 3",
     "c.yaml:18: quorum.minimum: 3 exceeds the 2 of sites_expected; lower it, or wait for more sites"),
    ("merge: diloco", "merge: dilocco",
     "c.yaml:17: merge: no merge preset is called 'dilocco'; did you mean 'diloco'?"),
    ("merge: diloco", "merge: [diloco]",
     f"c.yaml:17: merge: a list is no preset; write one of: {PRESET_NAMES}"),
    ("merge: diloco", "merge:\n  preset: 3\n  weights: all",
     f"c.yaml:18: merge.preset: 3 is no preset; write one of: {PRESET_NAMES}\n"
     "c.yaml:19: merge.weights: 'all' is not one of the choices; write one of: tokens, uniform"),
    ("merge: diloco", "merge:\n  method: ties\n  parameters:\n    density: 1.5\n    denisty: 1",
     "c.yaml:20: merge.parameters.density[0]: is 1.5; write a number in [0, 1]\n"
     "c.yaml:21: merge.parameters.denisty: ties has no parameter 'denisty'; did you mean 'density'?"),
    ("merge: diloco", "merge: {method: ties, parameters: {density: [{filter: mlp, value: true}, {filter: x}]}}",
     "c.yaml:17: merge.parameters.density[1]: 'value' is missing; add 'value:' with true or false or a whole number "
     "or a number or a list"),
    ("merge: diloco", "merge: {preset: ties, parameters: {density: [0.5, 0]}}",
     "c.yaml:17: merge.parameters.density: 0 keeps nothing of a contribution; write a number above 0, at most 1"),
    ("merge: diloco", "merge: {method: breadcrumbs, parameters: {gamma: 1, normalize: 1}}",
     "c.yaml:17: merge.parameters.gamma[0]: is 1; write a number in [0, 1)\n"
     "c.yaml:17: merge.parameters.normalize[0]: is 1; write true or false"),
    ("merge: diloco", "merge: {method: della, parameters: {density: 0.1}}",
     "c.yaml:17: merge.parameters.epsilon: 0.15 around density 0.1 leaves the range of chances, 0 to 1; "
     "write a number below 0.1"),
    ("merge: diloco", "merge: {method: karcher, parameters: {max_iter: 2.5, tol: []}}",
     "c.yaml:17: merge.parameters.max_iter[0]: is 2.5; write a whole number of at least 0\n"
     "c.yaml:17: merge.parameters.tol[0]: is a list of 0 numbers; write a number above 0"),
    ("merge: diloco", "merge: {method: slerp}",
     "c.yaml:17: merge.parameters: 't' is missing, slerp has no default; add 't:' with a number\n"
     "c.yaml:17: merge.method: slerp merges one contribution with the base, not 2; take a method for any number, "
     "such as linear or multislerp"),
    ("merge: diloco", "merge: {method: model_stock}",
     "c.yaml:17: merge.method: model_stock needs 2 contributions, quorum.minimum is 1; raise it"),
    ("merge: diloco", "merge: {guards: {clip: 0, cosine_min: 2}, embedding_rows: {tensors: [], count_max: 0}}",
     "c.yaml:17: merge.guards.clip: 0.0 does not fit; write a number (above 0)\n"
     "c.yaml:17: merge.guards.cosine_min: 2.0 does not fit; write a number (at least -1 and at most 1)\n"
     "c.yaml:17: merge.embedding_rows.tensors: an empty list does not fit; write a list (at least 1 item)\n"
     "c.yaml:17: merge.embedding_rows.count_max: 0 does not fit; write a whole number (at least 1)"),
    ("merge: diloco", "merge: {outer: {optimizer: adam, beta2: 1, tau: 0}}",
     "c.yaml:17: merge.outer.beta2: 1.0 does not fit; write a number (at least 0 and below 1)\n"
     "c.yaml:17: merge.outer.tau: 0.0 does not fit; write a number (above 0)"),
    ("merge: diloco", "merge:\n  outer:\n    momentum: 1.0\n    learning_rate: 0",
     "c.yaml:19: merge.outer.momentum: 1.0 does not fit; write a number (at least 0 and below 1)\n"
     "c.yaml:20: merge.outer.learning_rate: 0.0 does not fit; write a number (above 0)"),
    ("merge: diloco", "gate: {protected: [sv]}",
     "c.yaml:17: gate.protected: 'sv' is not in languages (fi, no); add it there or drop it"),
    ("merge: diloco", "gate:\n  confidence: 1\n  unscored: maybe",
     "c.yaml:18: gate.confidence: 1 does not fit; write a number (at least 0.5 and below 1)\n"
     "c.yaml:19: gate.unscored: 'maybe' is not one of the choices; write one of: allow, reject"),
    ("warmup_steps: 5", "warmup_steps: 50, beta2: 1",
     "c.yaml:16: train.optimizer.beta2: 1.0 does not fit; write a number (at least 0 and below 1)\n"
     "c.yaml:16: train.optimizer.warmup_steps: 50 exceeds the 20 steps of train; lower it, or train longer"),
    ("warmup_steps: 10", "warmup_steps: 11",
     "c.yaml:10: seed_round.optimizer.warmup_steps: 11 exceeds the 10 steps of seed_round; lower it, or train longer"),
    ("warmup_steps: 10", "moments: keep",
     "c.yaml:10: seed_round.optimizer.moments: keep: the seed round is one job, with no next one to keep them for; "
     "write it in train.optimizer"),
    ("warmup_steps: 5", "moments: kept",
     "c.yaml:16: train.optimizer.moments: 'kept' is not one of the choices; write one of: fresh, keep"),
    ("warmup_steps: 5}", "moments: keep}\n  lora: {rank: 2}",
     "c.yaml:16: train.optimizer.moments: keep: every job draws its adapters anew, moments are of the old; drop keep, "
     "or lora"),
    ("  sequence_tokens: 128", "  sequence_tokens: 256\n  replay_share: 1.5",
     "c.yaml:16: train.replay_share: 1.5 does not fit; write a number (at least 0 and at most 1)"),
    ("  sequence_tokens: 128", "  sequence_tokens: 256",
     "c.yaml:15: train.sequence_tokens: 256 exceeds the model's max_position_embeddings 128; lower it, or raise that"),
    ("num_attention_heads: 4", "num_attention_heads: 6, num_key_value_heads: 4",
     "c.yaml:5: model.config.hidden_size: 64 is not a multiple of num_attention_heads 6; "
     "change one of them, or add head_dim\n"
     "c.yaml:5: model.config.num_key_value_heads: 4 does not divide num_attention_heads 6; write a divisor of 6"),
    ("model_type: llama, ", "",
     "c.yaml:5: model.config: 'model_type' is missing; add one that transformers knows, such as llama"),
    ("{vocabulary_size: 512, ", "{vocabulary_size: 1024, ",
     "c.yaml:6: tokenizer: vocabulary_size 1024 exceeds the model's vocab_size 512; lower it, or raise that"),
    ("{vocabulary_size: 512, ", "{vocabulary_size: 256, ",
     "c.yaml:7: tokenizer.train.vocabulary_size: 256 does not fit; write a whole number (at least 257)"),
    (TOKENIZER, "", "c.yaml:1: 'tokenizer' is missing; add 'tokenizer:' with a mapping"),
    (TOKENIZER, "tokenizer: {}\n", "c.yaml:6: tokenizer: none of them given; write exactly one of: train, file"),
    (MODEL, "model: {directory: d, config: {}}\n",
     "c.yaml:4: model: config and directory given; write exactly one of: config, config_file, directory"),
    (MODEL, "model: {config_file: no.json}\n",
     "c.yaml:4: model.config_file: there is no file {here}/no.json; paths are relative to the campaign file"),
    (MODEL, "model: {config_file: c.yaml}\n",
     "c.yaml:4: model.config_file: {here}/c.yaml: JSON is malformed: invalid character (byte 0); "
     "give a Hugging Face config.json"),
    (MODEL, 'model: {directory: "\\0"}\n', "c.yaml:4: model.directory: there is no file {here}/\0/config.json; "
     "paths are relative to the campaign file"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), REFUSED, ids=[new[:24] for _, new, _ in REFUSED])
def test_what_does_not_fit_is_said_in_exactly_these_words(
    here: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(BadInput) as caught:
        loaded((old, new))
    assert str(caught.value) == message.replace("{here}", str(here))


def test_the_coordinator_sees_the_same_problems_without_a_file() -> None:
    campaign = loaded().campaign
    assert problems_in(campaign) == ()
    crooked = replace(
        campaign, languages=("no", "fi"), sites_expected=1, quorum=replace(campaign.quorum, minimum=2)
    )
    assert problems_in(crooked) == (
        (("languages",), "no, fi is not sorted, or has something twice; sort it and keep one of each"),
        (("quorum", "minimum"), "2 exceeds the 1 of sites_expected; lower it, or wait for more sites"),
    )
    both = replace(campaign, model=replace(campaign.model, files={}))
    assert missing_in(both) == ((("model",), "give either config or files, and not both"),)
