"""What follows by itself: mistakes in how rounds go and what jobs are told."""

from mutant import in_file

MUTANTS = (
    *in_file(
        "core/plan.py",
        ("leases never lapse", "elif moment.now > lease_until(job, lease_seconds, moment):", "elif False:"),
        (
            "leases of the suspended stay",
            'if site.status == "suspended":\n            reason',
            "if False:\n            reason",
        ),
        ("one failure more", "if job.failures >= limit:", "if job.failures > limit:"),
        (
            "all refused and still waiting",
            "elif set(job.sites) <= {*job.refused_by, *job.disproved}:",
            "elif False:",
        ),
        ("a failed seed is shrugged off", "if last.number == 0 and last.candidate is None:", "if False:"),
        (
            "next round before this one closed",
            "if last.state is not RoundState.CLOSED:",
            "if last.state is RoundState.TRAINING:",
        ),
        (
            "closed round leaves jobs open",
            "        elif not job.is_final:\n            yield ev.JobCancelled",
            "        elif False:\n            yield ev.JobCancelled",
        ),
        (
            "partial deltas are merged",
            "j for j in done if _enough(state.jobs[j], campaign) and not",
            "j for j in done if not",
        ),
        (
            "partial deltas make a quorum",
            "done = sum(_enough(j, campaign) for j in jobs)",
            "done = sum(j.state is JobState.DONE for j in jobs)",
        ),
        ("no minimum", "if len(mergeable) < needed:", "if not mergeable:"),
        ("quorum rounds down", "math.ceil(quorum.share", "math.floor(quorum.share"),
        ("quorum below the minimum", "needed = max(quorum.minimum, wanted)", "needed = wanted"),
        ("no deadline of a round", "if (why := overdue(campaign, job, now)) is None:", "if True:"),
        (
            "no deadline of the gate",
            "if not job.is_final and (why := given_up(",
            "if False and (why := given_up(",
        ),
        (
            "base is scored again and again",
            "if not _scored(campaign, round_.base, site, languages) and",
            "if",
        ),
        (
            "ended before it was compared",
            "if following is None and is_compared(state, campaign):",
            "if following is None:",
        ),
        (
            "tokenizer is waited for without end",
            "        elif (late := overdue(campaign, job",
            "        elif False and (late := overdue(campaign, job",
        ),
        ("merge: liars are waited for", "{*job.refused_by, *job.disproved}", "{*job.refused_by}"),
        ("late: a failed round drops what it has", "sorted((*left, *kept))", "sorted(left)"),
        ("account: nobody is warned", "yield from warnings(state)", "yield from ()"),
        ("no grace", "if now >= met_at + quorum.grace_hours * 3600.0:", "if True:"),
    ),
    *in_file(
        "core/rounds.py",
        (
            "too few sites open a round",
            "if len(participants(state, campaign)) < campaign.spec.sites_expected:",
            "if False:",
        ),
        (
            "rounds: fewer than the quorum needs",
            "if len(able) + len(late) < spec.quorum.minimum:",
            "if not able and not late:",
        ),
        (
            "account: a site without means takes part",
            "            out.append(lacks)",
            "            able.append(site)",
        ),
        (
            "pace: the decay is everybody else's",
            "schedule_steps=spec.rounds * steps)",
            "schedule_steps=work.schedule_steps)",
        ),
        ("late: its site is asked again", "if site.name in busy:", "if False:"),
    ),
    *in_file(
        "core/pace.py",
        ("pace: more than can be paid", "max(plan.steps, min(most, payable))", "most"),
        (
            "pace: steps are lost",
            "while (missing := total - sum(whole.values())) > 0:",
            "while (missing := 0) > 0:",
        ),
    ),
    *in_file(
        "core/late.py",
        ("late: a stale delta weighs as much", "tokens * percent**behind", "tokens * _PERCENT**behind"),
        ("late: for ever", "        and following - job.round <= quorum.staleness_max\n", ""),
        ("late: past the last round", "        and following <= campaign.spec.rounds\n", ""),
    ),
    *in_file(
        "core/lateness.py",
        (
            "account: judges that cannot pay are waited for",
            "return unpayable(state, job, now) or overdue(",
            "return overdue(",
        ),
        ("hours count from planning", "if job.started_at is not None:", "if False:"),
    ),
    *in_file(
        "core/orders.py",
        ("data order depends on nothing", 'f"{seed}/{number}/{stream}"', 'f"{seed}"'),
        (
            "merge: momentum is forgotten",
            "outer_state=campaign.versions[round_.base].manifest.outer_state,",
            "outer_state={},",
        ),
    ),
    *in_file(
        "core/comparison.py",
        ("no deadline of the comparison", "if (why := given_up(", "if False and (why := given_up("),
        (
            "comparison is late from the start",
            "max((j.planned_at for j in comparisons), default=_last_word(campaign))",
            "_last_word(campaign)",
        ),
    ),
    *in_file(
        "core/owed.py",
        (
            "judged before everybody scored",
            "return all(state.jobs[j].is_final for j in round_.gate_jobs)",
            "return any(state.jobs[j].is_final for j in round_.gate_jobs)",
        ),
        ("merge: owed twice", "RoundState.MERGING and coordinator_merges(", "RoundState.MERGING or ("),
    ),
)
