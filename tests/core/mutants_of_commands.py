"""What a command establishes, and who may give one: mistakes in it."""

from mutant import in_file

MUTANTS = (
    *in_file(
        "core/decide.py",
        ("token of another site", "if invitation.site != command.site:", "if False:"),
        ("token never expires", "if moment.now > invitation.valid_until:", "if False:"),
        ("suspended site may sync", 'if site.status == "suspended":', "if False:"),
        ("doubled lines count twice", "sorted(reports.items())", "((r.attempt, r) for r in command.reports)"),
        ("inspection of a stale attempt", " or job.attempt != command.attempt:", ":"),
        (
            "merge reported twice",
            "if round_.state is not RoundState.MERGING or not coordinator_merges(state, round_):",
            "if False:",
        ),
        (
            "same version made again",
            "if known := campaign.versions.get(manifest.digest):",
            "known = next(iter(campaign.versions.values()))\n    if False:",
        ),
        (
            "verdict while judges work",
            "if any(not state.jobs[job].is_final for job in round_.gate_jobs):",
            "if False:",
        ),
        ("verdict undoes an admin", 'if campaign.versions[version].status != "candidate":', "if False:"),
        (
            "verdict ignores a moved head",
            "if verdict.promote and campaign.head == round_.base:",
            "if verdict.promote:",
        ),
        (
            "rejected is promoted",
            "if verdict.promote and campaign.head == round_.base:",
            "if campaign.head == round_.base:",
        ),
        ("roll back to a rejected version", 'if version.status != "promoted":', "if False:"),
        ("stop leaves jobs running", "if job.campaign == command.campaign\n    ]", "if False\n    ]"),
        ("stop cancels other campaigns' jobs", "if job.campaign == command.campaign\n    ]", "]"),
        (
            "merge: the coordinator does a site's",
            "RoundState.MERGING or not coordinator_merges(state, round_):",
            "RoundState.MERGING:",
        ),
    ),
    *in_file(
        "core/reports.py",
        ("fence: a stale attempt counts", "or job.attempt != report.attempt or", "or"),
        ("fence: another site's attempt counts", "or job.site != site.name or", "or"),
        ("resume: any ended attempt", "job.outcome is Outcome.EXPIRED and site.name", "site.name"),
        ("resume: never", "job.state is JobState.PLANNED and job.outcome is Outcome.EXPIRED", "False"),
        ("a site may say expired", "if report.outcome is Outcome.EXPIRED else", "if False else"),
    ),
    *in_file(
        "core/moment.py",
        (
            "restart shortens leases",
            "max(last, job.leased_at, moment.started_at)",
            "max(last, job.leased_at)",
        ),
        ("syncs do not renew", "moment.renewed.get(job.attempt, job.leased_at)", "job.leased_at"),
        (
            "courier: its windows are the coordinator's",
            "if not site.windows or site.courier:",
            "if not site.windows:",
        ),
    ),
    *in_file(
        "core/transitions.py",
        (
            "table: refused is done",
            '(JobState.DELIVERED, "refuse"): JobState.PLANNED',
            '(JobState.DELIVERED, "refuse"): JobState.DONE',
        ),
    ),
    *in_file(
        "core/machine.py",
        (
            "leases before consequences",
            "if isinstance(command, cm.SyncSite):",
            "if isinstance(command, cm.Tick):",
        ),
    ),
    *in_file(
        "core/access.py",
        (
            "any certificate of the site will do",
            "if fingerprint != state.sites[SiteName(name)].fingerprint and",
            "if False and",
        ),
        (
            "sites read everything",
            'if role is not Role.SITE:\n        return Verdict(True, f"{role.value} {name} reads',
            'if True:\n        return Verdict(True, f"{role.value} {name} reads',
        ),
        ("idle sites write", "if role is Role.SITE and not state.live(SiteName(name)):", "if False:"),
    ),
    *in_file(
        "driver.py",
        (
            "an unwritten decision is believed",
            "                self._take_back()\n",
            "                pass\n",
        ),
        (
            "the snapshot of another release is trusted",
            "contextlib.suppress(msgspec.ValidationError)",
            "contextlib.nullcontext()",
        ),
    ),
)
