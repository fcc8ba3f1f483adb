"""Which site gets which job, and who pays: mistakes in it."""

from mutant import in_file

MUTANTS = (
    *in_file(
        "core/able.py",
        (
            "draining sites take part",
            "for site in holders(state, campaign) if not site.draining)",
            "for site in holders(state, campaign))",
        ),
        (
            "uninvited sites take part",
            "and (not spec.sites or name in spec.sites)\n        and own",
            "and own",
        ),
        ("merge: nobody has to offer", "if not site.merges:", "if False:"),
        ("merge: draining sites", "if site.draining:", "if False:"),
        ("merge: suspended sites", 'if site.status != "enrolled":', "if False:"),
        ("merge: anybody may", "if not named or name in named)", ")"),
        (
            "merge: any means site",
            "return round_.merge_job is not None and state.jobs[round_.merge_job].is_final",
            "return False",
        ),
    ),
    *in_file(
        "core/place.py",
        (
            "rivals first",
            "return URGENCY.index(job.purpose), -steps",
            "return -URGENCY.index(job.purpose), -steps",
        ),
        (
            "slots are no limit",
            "free = site.slots - len(state.live(name))\n    if free",
            "free = site.slots + 1 - len(state.live(name))\n    if free",
        ),
        (
            "leases within one sync are not counted",
            "    free = site.slots - len(state.live(name))\n    if free",
            "    free = site.slots\n    if free",
        ),
        ("draining sites get leases", "if site.draining:", "if False:"),
        ("admin's draining is ignored", 'if site.status != "enrolled":', 'if site.status == "suspended":'),
        ("who refused is asked again", "if site.name in job.refused_by:", "if False:"),
        ("rivals take the last slot", "and free < 2 and has_rounds", "and free < 1 and has_rounds"),
        ("attempts are numbered anew", "attempt_of(job.id, job.attempts + 1)", "attempt_of(job.id, 1)"),
        ("merge: offers are for ever", "if job.purpose is Purpose.MERGE and not site.merges:", "if False:"),
        ("merge: liars are asked again", "if site.name in job.disproved:", "if False:"),
        (
            "merge: last in the queue",
            "URGENCY.index(job.purpose), -steps",
            "9 if job.purpose is Purpose.MERGE else URGENCY.index(job.purpose), -steps",
        ),
        (
            "account: leases outside windows",
            "if (closed := _outside(site, takes, moment)) is not None:",
            "if False and (closed := _outside(site, takes, moment)) is not None:",
        ),
        ("account: a long job in a short window", "if needs <= length:", "if False:"),
        (
            "place: the slow site gets it",
            "if mine.finish_seconds <= best.finish_seconds * _AS_GOOD:\n        return None",
            "if True:\n        return None",
        ),
        (
            "place: the best is waited for without end",
            "if best.wait_seconds <= 0.0 and moment.now > asked_since + grace:",
            "if False:",
        ),
    ),
    *in_file(
        "core/merging.py",
        ("merge: full sites are free", "site.slots > len(state.live(site.name))", "True"),
        ("merge: no deadline", "if (late := overdue(", "if False and (late := overdue("),
        ("merge: inspections are cut off", "if job.state is JobState.DELIVERED:", "if False:"),
        ("merge: any waits for ever", "if moment.now > asked_since + spec.lease_seconds:", "if False:"),
        ("merge: a restart is no excuse", "max(job.free_since, moment.started_at)", "job.free_since"),
    ),
    *in_file(
        "core/accounting.py",
        ("account: an ended allocation pays", "if a.until is None or now < a.until]", "if True]"),
        ("account: nothing is held back", "max(0.0, one.expected_gpu_seconds - one.gpu_seconds)", "0.0"),
        ("account: another site's attempt is charged", " or known.site != site.name:", ":"),
        (
            "account: every heartbeat is an event",
            "return usage.gpu_seconds >= known.gpu_seconds + step",
            "return usage.gpu_seconds > known.gpu_seconds",
        ),
        (
            "account: what a site forgot is held back for ever",
            "if report is not None and report.phase is not Phase.ENDED:",
            "if report is None or report.phase is not Phase.ENDED:",
        ),
    ),
    *in_file(
        "core/charging.py",
        ("account: leases beyond what is left", "elif takes.gpu_seconds > remaining:", "elif False:"),
        (
            "account: a job outlives its allocation",
            "if allocation.until is None or ends <= allocation.until:",
            "if True:",
        ),
        ("account: what may come back is given up", " or job.outcome is Outcome.EXPIRED or", " or"),
    ),
)
