"""What a Flower run's ServerApp may ask, and how its messages become jobs.

A message is known by its place in the run: the how manyth sending, to which site. A ServerApp that is started again
from its beginning sends the same messages, finds their jobs done, and so comes to where the one before it was. One
that sends something else in the same place is told so: it would get a reply to a question that it did not ask.
"""

from collections.abc import Iterator

from consortium.canonical import encode, replace
from consortium.errors import BadInput, Refused
from consortium.flower.runs import FlowerOrder, FlowerRun, app_reference, job_part, message_type, node_of
from consortium.ids import CampaignId, JobId, SiteName, campaign_id, job_named
from consortium.jobs import FlowerMessage, Purpose
from coordinator.core import commands as cm
from coordinator.core import events as ev
from coordinator.core.decide import decide
from coordinator.core.moment import Moment
from coordinator.core.state import FlowerRunState, Job, State
from policies.consistency import LEASE_SECONDS_MIN

_HOUR = 3600.0
_RUN_BYTES_MAX = 256 << 10
_GROUP_CHARACTERS_MAX = 200


@decide.register
def _(command: cm.OpenFlowerRun, state: State, moment: Moment) -> list[ev.AnyEvent]:
    asked = command.run
    campaign_id(asked.run)
    app_reference(asked.app)
    if min(asked.lease_seconds, asked.courier_lease_hours * _HOUR) < LEASE_SECONDS_MIN:
        raise BadInput(
            f"Flower run {asked.run}: a lease is shorter than {LEASE_SECONDS_MIN:g} s; give minutes"
        )
    if len(encode(asked)) > _RUN_BYTES_MAX:
        raise BadInput(
            f"Flower run {asked.run}: its settings have more than {_RUN_BYTES_MAX} bytes, which stand in each of its "
            "orders; send what is large in a message"
        )
    if asked.run in state.campaigns:
        raise Refused(f"a campaign {asked.run!r} exists already; choose another name for the run")
    if (known := state.flower_runs.get(asked.run)) is not None:
        sites = asked.sites or known.spec.sites
        if replace(asked, sites=tuple(sorted(set(sites)))) == known.spec:
            return []  # the ServerApp was started again
        raise Refused(
            f"a Flower run {asked.run!r} of other apps, sites or settings exists already; choose another name "
            "(the ledger keeps the old one), or ask for the very same"
        )
    sites = tuple(sorted(set(asked.sites or _able(state))))
    if unknown := [site for site in sites if site not in state.sites]:
        raise Refused(
            f"site {unknown[0]!r} is not enrolled; known: {', '.join(sorted(state.sites)) or 'none'}"
        )
    if not sites:
        raise Refused(f"Flower run {asked.run}: no site is enrolled that could take part")
    return [ev.FlowerRunOpened(run=replace(asked, sites=sites), sender=command.sender)]


def _able(state: State) -> list[SiteName]:
    return [name for name, site in state.sites.items() if site.status == "enrolled" and not site.draining]


@decide.register
def _(command: cm.PushFlowerMessages, state: State, moment: Moment) -> list[ev.AnyEvent]:
    run = _run(state, command.run)
    events: list[ev.AnyEvent] = []
    planned: dict[JobId, FlowerOrder] = {}
    for order in command.orders:
        job = job_named(command.run, job_part(order))
        work = _work(run, order)
        if (known := state.jobs.get(job)) is not None:
            _is_the_same(known, work, order)
        elif run.status != "open":
            raise Refused(f"Flower run {command.run} is {run.status}: {run.reason}; it sends nothing new")
        elif job in planned:
            if planned[job] != order:
                raise BadInput(f"{job}: two messages for one place; count the second one's copy as 2")
        else:
            planned[job] = order
            events.append(
                ev.JobPlanned(
                    job=job,
                    campaign=command.run,
                    round=order.ordinal,
                    purpose=Purpose.FLOWER,
                    sites=(order.site,),
                    work=work,
                    inputs=order.inputs,
                    tokenizer=None,
                    reason=f"the ServerApp sends {order.site} a message: {order.message_type}",
                )
            )
    return events


def _work(run: FlowerRunState, order: FlowerOrder) -> FlowerMessage:
    message_type(order.message_type)
    if order.site not in run.spec.sites:
        raise BadInput(
            f"Flower run {run.spec.run} has no site {order.site!r}; its sites: {', '.join(run.spec.sites)}"
        )
    if len(order.group) > _GROUP_CHARACTERS_MAX or not order.group.isprintable():
        raise BadInput(
            f"message {order.ordinal} to {order.site}: its group has to be one line of at most "
            f"{_GROUP_CHARACTERS_MAX} characters"
        )
    if order.ordinal < 1 or order.copy < 1 or order.letter.digest not in order.inputs:
        raise BadInput(
            f"message {order.ordinal} to {order.site}: count from 1 on, and name the letter as an input"
        )
    return FlowerMessage(
        app=run.spec.app,
        run_config=run.spec.run_config,
        message_type=order.message_type,
        group=order.group,
        node=node_of(order.site),
        letter=order.letter,
        state=run.kept.get(order.site),
    )


def _is_the_same(known: Job, work: FlowerMessage, order: FlowerOrder) -> None:
    """Raise Refused unless the job was planned for this very message; what the site kept is the ledger's to say."""
    assert isinstance(known.work, FlowerMessage)
    if replace(known.work, state=work.state) != work or known.inputs != order.inputs:
        raise Refused(
            f"{known.id} was planned for another message: started again, this ServerApp sends something else "
            "(random numbers without a seed? another start?); give it a seed, or a new run's name"
        )


@decide.register
def _(command: cm.CompleteFlowerRun, state: State, moment: Moment) -> list[ev.AnyEvent]:
    run = _run(state, command.run)
    if run.status == "completed":
        return []
    if run.status != "open":
        raise Refused(f"Flower run {command.run} is {run.status}: {run.reason}")
    left: list[ev.AnyEvent] = [
        ev.JobCancelled(job=job.id, reason="the ServerApp ended without waiting for it")
        for job in state.open_jobs()
        if job.campaign == command.run
    ]
    return [*left, ev.FlowerRunEnded(run=command.run, status="completed", reason=command.reason)]


def given_up_messages(state: State, moment: Moment) -> Iterator[ev.AnyEvent]:
    """Messages that their run's ``reply_hours`` gives up: an error for the ServerApp, the same each time it asks."""
    for job in state.open_jobs():
        if job.purpose is not Purpose.FLOWER:
            continue
        hours = state.flower_runs[job.campaign].spec.reply_hours
        if hours is not None and moment.now > job.planned_at + hours * _HOUR:
            yield ev.JobCancelled(
                job=job.id, reason=f"no reply within {hours:g} h: {job.state.value}, {job.reason}"
            )


def _run(state: State, name: CampaignId) -> FlowerRunState:
    if name not in state.flower_runs:
        known = ", ".join(sorted(state.flower_runs)) or "none"
        raise BadInput(f"there is no Flower run {name!r}; known: {known}")
    return state.flower_runs[name]


def opened(state: State, name: CampaignId) -> FlowerRun:
    """The run as it stands in the ledger. Raises BadInput if there is none."""
    return _run(state, name).spec
