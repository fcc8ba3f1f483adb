"""Whether the parts of a campaign fit together: what no single field's type can say.

Pure, and used twice: by ``load_campaign``, which adds file and line, and by the coordinator, which checks
whatever is submitted to it.
"""

from collections.abc import Iterator
from typing import Any

from consortium.canonical import Fact
from consortium.checking import Place, Problem, problems_of, shown
from consortium.codecs.names import is_coded
from consortium.errors import BadInput
from consortium.ids import campaign_id, site_name
from consortium.jobs import Muon, Optimizer
from policies.campaign import COURIER_LEASE_HOURS, TEMPERATURE, Campaign, TrainPlan
from policies.merge_rules import merge_notes, merge_problems
from policies.ranges import Count, Fraction, Natural, NotNegative, Positive, Share

LEASE_SECONDS_MIN = 0.5  #: half of the coordinator's pause between two looks at leases
_DESCRIPTION_CHARACTERS_MAX = 4000

# Ranges of facts that ``consortium`` owns, whose types say only int or float.
_OPTIMIZER = {
    "learning_rate": Positive,
    "warmup_steps": Natural,
    "final_share": Share,
    "weight_decay": NotNegative,
    "beta1": Fraction,
    "beta2": Fraction,
    "clip_norm": NotNegative,
}


def problems_in(campaign: Campaign, config: dict[str, Any] | None = None) -> tuple[Problem, ...]:
    """What does not fit in a campaign that decoded, each with its place and the way out.

    config  of the model, where it is not in the campaign itself (a model given as files)
    """
    return tuple(_problems_in(campaign, config or campaign.model.config))


def missing_in(campaign: Campaign) -> tuple[Problem, ...]:
    """What ``submit`` has yet to fill in; a campaign in the ledger has nothing missing and nothing twice."""
    found: list[Problem] = []
    if (campaign.model.config is None) == (campaign.model.files is None):
        found.append((("model",), "give either config or files, and not both"))
    if (campaign.tokenizer.vocabulary_size is None) == (campaign.tokenizer.digest is None):
        found.append((("tokenizer",), "give either vocabulary_size or digest, and not both"))
    return tuple(found)


def notes_on(campaign: Campaign) -> tuple[Problem, ...]:
    """What is allowed and seldom meant."""
    found: list[Problem] = []
    if campaign.model.config is not None and campaign.seed_round is None:
        sentence = (
            "every site starts round 1 from random weights, and what they learn apart merges badly; "
            "add seed_round, or give a trained model's directory"
        )
        found.append((("model",), sentence))
    if campaign.train.replay_share == 0:
        sentence = (
            "0 means no public text, and specialists forget all other languages; we measured 0.5 to be good"
        )
        found.append((("train", "replay_share"), sentence))
    if campaign.train.sampling == "unimax" and campaign.train.temperature != TEMPERATURE:
        sentence = "unimax has no temperature; write sampling: temperature, or leave it out"
        found.append((("train", "temperature"), sentence))
    found.extend(merge_notes(campaign))
    quorum, lease = campaign.quorum, campaign.courier_lease_hours
    hours = min(quorum.deadline_hours, quorum.queue_hours_max or quorum.deadline_hours)
    if lease != COURIER_LEASE_HOURS and hours < lease:  # who set it has such a site
        sentence = (
            f"a round waits {hours:g} h for a job of which nothing is heard, fewer than the {lease:g} h of "
            "courier_lease_hours: it may close before a bundle is back; raise deadline_hours and queue_hours_max"
        )
        found.append((("quorum", "deadline_hours"), sentence))
    if campaign.merge_at == "coordinator" and campaign.merge_sites:
        sentence = (
            f"{', '.join(campaign.merge_sites)} will not merge: merge_at is coordinator; write site or any"
        )
        found.append((("merge_sites",), sentence))
    if campaign.merge_at != "coordinator" and campaign.merge_check == "none":
        sentence = (
            "none means that wrong weights from the merging site go to the gate, and perhaps to everybody; "
            "only `sprachbund verify` finds them"
        )
        found.append((("merge_check",), sentence))
    return tuple(found)


def _problems_in(campaign: Campaign, config: dict[str, Any] | None) -> Iterator[Problem]:
    yield from _names(campaign)
    yield from _description(campaign.description)
    yield from _leases(campaign)
    yield from _quorum(campaign)
    yield from _optimizer(campaign.train.optimizer, campaign.train.steps, "train")
    if campaign.seed_round is not None:
        yield from _optimizer(campaign.seed_round.optimizer, campaign.seed_round.steps, "seed_round")
        if campaign.seed_round.optimizer.moments == "keep":
            sentence = "keep: the seed round is one job, with no next one to keep them for; write it in train.optimizer"
            yield ("seed_round", "optimizer", "moments"), sentence
    yield from _train(campaign.train)
    yield from merge_problems(campaign)
    if config is not None:
        yield from _config(config, campaign)


def _description(text: str) -> Iterator[Problem]:
    if len(text) > _DESCRIPTION_CHARACTERS_MAX:
        yield (
            ("description",),
            f"{len(text)} characters; at most {_DESCRIPTION_CHARACTERS_MAX}: link to the rest",
        )
    if not all(letter.isprintable() or letter in "\n\t" for letter in text):
        yield (
            ("description",),
            "has characters that cannot be printed and may steer a terminal; leave them out",
        )


def _leases(campaign: Campaign) -> Iterator[Problem]:
    for field, seconds in (
        ("lease_seconds", campaign.lease_seconds),
        ("courier_lease_hours", campaign.courier_lease_hours * 3600.0),
    ):
        if seconds < LEASE_SECONDS_MIN:
            sentence = (
                f"{seconds:g} s are over before anybody can say a word, and each lease that lapses stands in the "
                f"ledger; give at least {LEASE_SECONDS_MIN:g} s, and minutes in earnest"
            )
            yield (field,), sentence


def _names(campaign: Campaign) -> Iterator[Problem]:
    for place, parse, names in (
        (("campaign",), campaign_id, (campaign.campaign,)),
        (("sites",), site_name, campaign.sites),
        (("merge_sites",), site_name, campaign.merge_sites),
    ):
        for name in names:
            try:
                parse(name)
            except BadInput as error:
                yield place, str(error)
    lists = {
        "languages": campaign.languages,
        "sites": campaign.sites,
        "merge_sites": campaign.merge_sites,
    }
    for key, values in lists.items():
        if list(values) != sorted(set(values)):
            yield (
                (key,),
                f"{', '.join(values)} is not sorted, or has something twice; sort it and keep one of each",
            )
    for language in campaign.gate.protected:
        if language not in campaign.languages:
            known = ", ".join(campaign.languages)
            yield (
                ("gate", "protected"),
                f"{shown(language)} is not in languages ({known}); add it there or drop it",
            )


def _quorum(campaign: Campaign) -> Iterator[Problem]:
    minimum, expected = campaign.quorum.minimum, campaign.sites_expected
    if minimum > expected:
        sentence = f"{minimum} exceeds the {expected} of sites_expected; lower it, or wait for more sites"
        yield ("quorum", "minimum"), sentence
    if campaign.sites and expected > len(campaign.sites):
        yield (
            ("sites_expected",),
            f"{expected} exceeds the {len(campaign.sites)} of sites; lower it, or name more sites",
        )
    if campaign.quorum.late == "next_round":
        if is_coded(campaign.train.delta_dtype):
            sentence = (
                f"next_round does not go with delta_dtype {campaign.train.delta_dtype}: what an encoding leaves "
                "unsaid is said in the delta that follows, in order; write bf16, or late: refuse"
            )
            yield ("quorum", "late"), sentence
        if campaign.merge.weights != "tokens":
            sentence = (
                f"next_round discounts a late delta's weight, but the recipe weighs {campaign.merge.weights}; "
                "write weights: tokens, or late: refuse"
            )
            yield ("quorum", "late"), sentence


def _train(plan: TrainPlan) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, group in enumerate(plan.groups):
        place = ("train", "groups", number)
        yield from _ranges(group, place, {"learning_rate_factor": Share})
        if not group.match or group.match in seen:
            sentence = f"{shown(group.match)} matches nothing that is left; the first group that fits counts: drop it"
            yield (*place, "match"), sentence
        seen.add(group.match)
    if plan.lora is not None:
        yield from _ranges(plan.lora, ("train", "lora"), {"rank": Count, "alpha": Positive})
        if not plan.lora.match or not all(plan.lora.match):
            yield ("train", "lora", "match"), "names no tensor; write *_proj.weight, or leave it out"
        if plan.groups or plan.proximal:
            sentence = (
                "adapters are all that learns: groups and proximal are of a model's own weights; drop them"
            )
            yield ("train", "lora"), sentence
        if isinstance(plan.optimizer.muon, Muon):
            sentence = (
                "orthogonal steps are of whole matrices, adapters are halves of them; drop muon, or lora"
            )
            yield ("train", "optimizer", "muon"), sentence
        if plan.optimizer.moments == "keep":
            sentence = "keep: every job draws its adapters anew, moments are of the old; drop keep, or lora"
            yield ("train", "optimizer", "moments"), sentence
    if "*" in seen and not any(group.learning_rate_factor for group in plan.groups):
        yield ("train", "groups"), "nothing is left to learn; give a group a learning_rate_factor above 0"


def _optimizer(optimizer: Optimizer, steps: int, section: str) -> Iterator[Problem]:
    place = (section, "optimizer")
    yield from _ranges(optimizer, place, _OPTIMIZER)
    if isinstance(optimizer.muon, Muon):
        yield from _ranges(optimizer.muon, (*place, "muon"), {"momentum": Fraction})
    if optimizer.warmup_steps > steps:
        sentence = (
            f"{optimizer.warmup_steps} exceeds the {steps} steps of {section}; lower it, or train longer"
        )
        yield (*place, "warmup_steps"), sentence


def _config(config: dict[str, Any], campaign: Campaign) -> Iterator[Problem]:
    """The few keys of a Hugging Face config that a campaign can contradict; transformers judges the rest."""
    place = ("model", "config")
    if not isinstance(config.get("model_type"), str):
        yield place, "'model_type' is missing; add one that transformers knows, such as llama"
    positions = _number(config, "max_position_embeddings")
    if positions is not None and campaign.train.sequence_tokens > positions:
        sentence = (
            f"{campaign.train.sequence_tokens} exceeds the model's max_position_embeddings {positions}; "
            f"lower it, or raise that"
        )
        yield ("train", "sequence_tokens"), sentence
    words, vocabulary = _number(config, "vocab_size"), campaign.tokenizer.vocabulary_size
    if words is not None and vocabulary is not None and vocabulary > words:
        sentence = (
            f"vocabulary_size {vocabulary} exceeds the model's vocab_size {words}; lower it, or raise that"
        )
        yield ("tokenizer",), sentence
    hidden, heads = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    if (
        hidden is not None
        and heads is not None
        and "head_dim" not in config
        and (heads < 1 or hidden % heads)
    ):
        sentence = (
            f"{hidden} is not a multiple of num_attention_heads {heads}; change one of them, or add head_dim"
        )
        yield (*place, "hidden_size"), sentence
    shared = _number(config, "num_key_value_heads")
    if heads is not None and shared is not None and (shared < 1 or heads % shared):
        sentence = f"{shared} does not divide num_attention_heads {heads}; write a divisor of {heads}"
        yield (*place, "num_key_value_heads"), sentence


def _number(config: dict[str, Any], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _ranges(fact: Fact, place: Place, kinds: dict[str, Any]) -> Iterator[Problem]:
    for key, kind in kinds.items():
        yield from problems_of(getattr(fact, key), kind, (*place, key))
