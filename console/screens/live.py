"""What is going on now: the live view of the demo and of ``watch``, made of parts that other pages reuse."""

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from console.screens.parts import ago, ahead, bar, count, plain, spent, state, table, used, window, words
from consortium.ids import short
from consortium.views import CampaignView, ConsortiumView, JobView, VersionView

_REASONS_MIN = 3
_OF_A_ROUND = ("seed", "round")


def live(view: ConsortiumView, width: int = 100, height: int = 30) -> RenderableType:
    """Rounds, running jobs, sites and reasons on one screen.

    width   columns, 80 or more
    height  lines, 24 or more: what does not fit is counted, not shown; reasons get the lines that are left
    """
    campaigns = sorted(view.campaigns, key=lambda one: (one.status != "open", one.campaign))
    rows = height - 11  # without the heading, titles and blank lines
    parts: list[RenderableType] = [heading(view, width)]
    if campaigns:
        parts += [Text(), *campaign_lines(campaigns[0], view, width, rows // 4)]
        rows -= min(rows // 4, len(campaigns[0].rounds))
    if len(campaigns) > 1:
        parts.append(Text(f"and {len(campaigns) - 1} more: sprachbund status", style="bright_black"))
        rows -= 1
    sites = sites_table(view, width, max(rows // 3, rows - max(1, len(view.attempts)) - _REASONS_MIN))
    rows -= sites.row_count
    jobs = attempts_table(view, width, rows - _REASONS_MIN)
    rows -= jobs.row_count
    parts += [Text(), jobs, Text(), sites]
    if reasons := reasons_table(view, width, rows):
        parts += [Text(), reasons]
    return Group(*parts)


def heading(view: ConsortiumView, width: int) -> RenderableType:
    """Which consortium, and how far its ledger has come."""
    line = Table.grid(expand=True)
    line.width = width
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_column(justify="right", no_wrap=True)
    line.add_row(
        Text.assemble(("Sprachbund ", "bold bright_blue"), (plain(view.consortium), "bold")),
        Text(f"ledger {view.sequence} · {short(view.head)}", style="bright_black"),
    )
    return Group(line, Rule(style="bright_black"))


def campaign_lines(
    campaign: CampaignView, view: ConsortiumView, width: int, rounds_max: int
) -> list[RenderableType]:
    """A campaign's state and its newest rounds, whose bars count the steps of running jobs too."""
    head = next(
        (version.name for version in campaign.versions if version.digest == campaign.head), "none yet"
    )
    title = Text.assemble(
        ("Campaign ", "bold bright_blue"),
        (plain(campaign.campaign), "bold"),
        "  ",
        state(campaign.status),
        f"  head {plain(head)}  ",
        (plain(" ".join(campaign.languages)), "magenta"),
    )
    title.truncate(width, overflow="ellipsis")
    grid = table("Round", "", ">jobs", "State", "Reason…", width=width)
    for round_ in sorted(campaign.rounds, key=lambda one: one.round)[-rounds_max:] if rounds_max else ():
        is_closed = round_.state == "closed"
        under_way = 0.0 if is_closed else _jobs_under_way(view, campaign, round_.round)
        grid.add_row(
            f"{round_.round} of {campaign.rounds_planned}" if round_.round else "seed",
            bar(
                round_.jobs_done + under_way,
                round_.jobs,
                _bar_width(width),
                "green" if is_closed else "cyan",
            ),
            f"{round_.jobs_done}/{round_.jobs}",
            state(round_.state),
            words(round_.reason, "bright_black" if is_closed else ""),
        )
    return [title, grid] if grid.row_count else [title]


def attempts_table(view: ConsortiumView, width: int, rows: int) -> Table:
    """What runs where, and how fast; running ones first."""
    grid = table("Job…", "Site", "Phase", "", ">step", ">tokens", ">loss", ">tokens/s", width=width)
    attempts = sorted(view.attempts, key=lambda one: (one.phase != "running", one.job, one.attempt))
    shown = attempts if len(attempts) <= rows else attempts[: rows - 1]
    for attempt in shown:
        grid.add_row(
            _brief(attempt.attempt, view),
            words(attempt.site),
            state(attempt.phase),
            bar(attempt.step, attempt.steps, _bar_width(width)),
            f"{attempt.step}/{attempt.steps}" if attempt.steps else "",
            count(attempt.tokens) if attempt.tokens else "",
            f"{attempt.loss:.3f}" if attempt.loss is not None else "",
            count(attempt.tokens_per_second) if attempt.tokens_per_second else "",
        )
    if len(shown) < len(attempts):
        grid.add_row(Text(f"and {len(attempts) - len(shown)} more", style="bright_black"))
    if not attempts:
        grid.add_row(Text("nothing runs", style="bright_black"))
    return grid


def sites_table(view: ConsortiumView, width: int, rows: int) -> Table:
    """Who takes part, with which languages, and when it was last heard of."""
    # what a site does not limit needs no column
    limited = any(site.allocations or site.gpu_hours for site in view.sites)
    timed = any(site.has_windows for site in view.sites)
    columns = ["Site", "Status", "Languages…", ">slots busy"]
    columns += [">GPU-hours"] * limited + ["Window"] * timed
    grid = table(*columns, ">last seen", width=width)
    sites = sorted(view.sites, key=lambda one: one.site)
    shown = sites if len(sites) <= rows else sites[: rows - 1]
    for site in shown:
        grid.add_row(
            words(site.site),
            state(site.status),
            words(
                " ".join(site.languages) or "none of its own", "magenta" if site.languages else "bright_black"
            ),
            f"{site.busy} of {site.slots}",
            *([used(site)] if limited else []),
            *([window(site, view.now)] if timed else []),
            ago(site.seen_seconds_ago),
        )
    if len(shown) < len(sites):
        grid.add_row(Text(f"and {len(sites) - len(shown)} more", style="bright_black"))
    if not sites:
        grid.add_row(Text("no site has enrolled yet", style="bright_black"))
    return grid


def reasons_table(view: ConsortiumView, width: int, rows: int) -> Table | None:
    """Why things are as they are: troubles first, then what waits, then the newest decisions on versions."""
    jobs = sorted(view.jobs, key=lambda job: (-job.round, job.job))
    troubles = [job for job in jobs if job.state == "failed" or (job.state == "planned" and job.attempts)]
    waiting = [job for job in jobs if job.state == "planned" and job not in troubles]
    busy = {job.campaign for job in jobs if job.state in ("leased", "delivered")}
    found = [(job.job, job.state, job.reason) for job in troubles]
    for site in sorted(view.sites, key=lambda one: one.site):
        found += [(site.site, "held back", why) for why in site.held_back]
        found += [(site.site, "spent", why) for why in spent(site)]
    for campaign in sorted(view.campaigns, key=lambda one: one.campaign):
        if campaign.reason and campaign.campaign not in busy:
            found.append((campaign.campaign, campaign.status, campaign.reason))
        decided = [version for version in campaign.versions if version.reason]
        decided.sort(key=lambda version: (version.round, version.name), reverse=True)
        found += [(version.name, version.status, _decided(version)) for version in decided[:2]]
    found += [(job.job, job.state, job.reason + _expected(job, view.now)) for job in waiting]
    if not found or rows < 1:
        return None
    grid = table("Why", "", "…", width=width)
    for subject, word, reason in found[:rows]:
        grid.add_row(_brief(subject, view), state(word), words(reason))
    return grid


def _decided(version: VersionView) -> str:
    """What became of a version, and who merged it, if a site did."""
    return f"merged at {version.merged_by}: {version.reason}" if version.merged_by else version.reason


def _expected(job: JobView, now: float) -> str:
    """When a waiting job is expected to run, if that is not at once."""
    if job.expected_start is None or job.expected_start < now + 60.0:
        return ""
    return f"; expected to start in {ahead(job.expected_start - now)}"


def _bar_width(width: int) -> int:
    """Room for a bar beside the widest row we know, a job's."""
    return max(6, min(24, width - 84))


def _jobs_under_way(view: ConsortiumView, campaign: CampaignView, number: int) -> float:
    """How many jobs' worth of training the running attempts of a round have done, in fractions of a job."""
    jobs = {
        job.job
        for job in view.jobs
        if (job.campaign, job.round) == (campaign.campaign, number)
        and job.purpose in _OF_A_ROUND
        and job.state == "leased"
    }
    return sum(one.step / one.steps for one in view.attempts if one.job in jobs and one.steps)


def _brief(name: str, view: ConsortiumView) -> Text:
    """A job's or attempt's name; its campaign is left out where there is only one."""
    if len(view.campaigns) == 1:
        name = name.removeprefix(f"{view.campaigns[0].campaign}_")
    return words(name)
