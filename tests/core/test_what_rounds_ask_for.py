"""Which keys of a train plan go into which jobs: what holds sites together is for rounds alone."""

from consortium_in_facts import OPTIMIZER, given

from consortium.canonical import replace
from consortium.ids import Digest
from consortium.jobs import LayerGroup, Lora, Train
from coordinator.core.orders import train_order
from policies.campaign import TrainPlan
from policies.consistency import notes_on, problems_in

PLAN = TrainPlan(
    steps=10,
    batch_sequences=2,
    sequence_tokens=8,
    optimizer=OPTIMIZER,
    unseen_rows="keep",
    proximal=0.1,
    groups=(LayerGroup(match="embeddings", learning_rate_factor=0.0),),
    packing="documents",
    sampling="temperature",
    temperature=3.0,
)


def test_rounds_ask_for_all_of_it_seed_and_rivals_for_what_is_theirs() -> None:
    coordinator = given(train=PLAN)
    (campaign,) = coordinator.state.campaigns.values()
    round_ = coordinator.job("demo_r1-train-north").work
    assert isinstance(round_, Train)
    seed, rival = (
        train_order(campaign, round_.base, number, "any", (), 5, replay_share=1.0) for number in (0, 1)
    )
    assert (round_.unseen_rows, round_.proximal, round_.groups) == ("keep", 0.1, PLAN.groups)
    assert (seed.unseen_rows, seed.proximal, seed.groups) == ("move", 0.0, ())
    assert (rival.unseen_rows, rival.proximal, rival.groups) == ("move", 0.0, PLAN.groups)
    assert {(work.sampling, work.temperature) for work in (round_, seed, rival)} == {("temperature", 3.0)}
    assert {work.packing for work in (round_, seed, rival)} == {"documents"}


def test_groups_that_cannot_be_meant_are_refused_and_a_temperature_of_nothing_is_noted() -> None:
    (campaign,) = given(train=PLAN).state.campaigns.values()

    def problems(*groups: tuple[str, float]) -> list[str]:
        made = tuple(LayerGroup(match=match, learning_rate_factor=factor) for match, factor in groups)
        found = problems_in(replace(campaign.spec, train=replace(PLAN, groups=made)))
        return [".".join(map(str, place)) for place, _ in found]

    assert problems(("embeddings", 0.0), ("*", 0.5)) == []
    assert problems(("embeddings", 1.5)) == ["train.groups.0.learning_rate_factor"]
    assert problems(("*.mlp.*", 0.5), ("*.mlp.*", 0.1)) == ["train.groups.1.match"]
    assert problems(("*", 0.0)) == ["train.groups"]
    unimax = replace(campaign.spec, train=replace(PLAN, sampling="unimax"))
    assert ("train", "temperature") in [place for place, _ in notes_on(unimax)]
    assert ("train", "temperature") not in [place for place, _ in notes_on(campaign.spec)]


def test_adapters_are_for_all_but_the_seed_round_and_exclude_what_is_of_all_weights() -> None:
    plan = replace(PLAN, lora=Lora(rank=4), groups=(), proximal=0.0)
    (campaign,) = given(train=plan).state.campaigns.values()
    base = Digest("0" * 64)
    orders = [train_order(campaign, base, number, "any", (), 5, replay_share=1.0) for number in (0, 1)]
    assert [order.lora for order in orders] == [None, Lora(rank=4)]

    def places(**changes: object) -> list[str]:
        found = problems_in(replace(campaign.spec, train=replace(plan, **changes)))
        return [".".join(map(str, place)) for place, _ in found]

    assert places() == []
    assert places(lora=Lora(rank=0)) == ["train.lora.rank"]
    assert places(lora=Lora(rank=4, alpha=0.0)) == ["train.lora.alpha"]
    assert places(lora=Lora(rank=4, match=())) == ["train.lora.match"]
    assert places(proximal=0.1) == places(groups=PLAN.groups) == ["train.lora"]
