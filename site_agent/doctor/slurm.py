"""Would the site's Slurm take our jobs: reachable, which release, partition, account, GPUs."""

import re
import shlex
import time
from collections.abc import Iterator
from functools import partial

from consortium.errors import BadInput, Unavailable
from policies.site_profile import SiteProfile
from site_agent.doctor.check import Check, check
from site_agent.launchers.slurm.commands import Commands, Completed
from site_agent.launchers.slurm.request import Request, sbatch_line

_OLDEST = (22, 5)
_SCRIPT = b"#!/bin/bash\ntrue\n"
_WAY_OUT = "correct `slurm:` in the site's config: {what}"


def slurm_checks(profile: SiteProfile, commands: Commands, folder: str) -> Iterator[Check]:
    """Nothing is submitted.

    folder  as the nodes see the site's home
    """
    reach = "load the site's Slurm module for the agent, or run it where sbatch works"
    yield check("slurm", partial(_release, commands), reach)
    what = f"partition {profile.partition or '(the default one)'}; `sinfo -s` lists what there is"
    yield check("partition", partial(_partition, profile, commands), _WAY_OUT.format(what=what))
    if profile.gpus_per_node:
        what = "gpus_per_node, gpu_model, partition; `sinfo -o '%P %G'` lists what there is"
        yield check("gpus", partial(_gpus, profile, commands), _WAY_OUT.format(what=what))
    what = "account, partition, qos, walltime and GPUs have to be ones that you may use"
    yield check("submit", partial(_test_only, profile, commands, folder), _WAY_OUT.format(what=what))
    if profile.unverified:
        names = ", ".join(profile.unverified)
        yield Check(
            name="profile",
            is_good=True,
            is_warning=True,
            detail=f"nobody has tried here: {names}",
            way_out="read one script with `sprachbund site render` before trusting it",
        )


def _release(commands: Commands) -> str:
    said = _ask(commands, ["sbatch", "-V"])
    found = re.search(r"(\d+)\.(\d+)\S*", said.out)
    if found is None:
        raise Unavailable(f"`sbatch -V` said {said.out.strip()[:80]!r}")
    if (int(found[1]), int(found[2])) < _OLDEST:
        raise BadInput(f"Slurm {found[0]} is older than 22.05, the oldest that was tried")
    _ask(commands, ["squeue", "-h", "--me", "-o", "%A"])  # the controller itself
    return f"Slurm {found[0]}, and its controller answers"


def _partition(profile: SiteProfile, commands: Commands) -> str:
    words = ["sinfo", "-h", "-o", "%P|%a|%l|%D"]
    if profile.partition:
        words += ["-p", profile.partition]
    rows = [line.split("|") for line in _ask(commands, words).out.splitlines() if line.count("|") == 3]
    if not profile.partition:
        rows = [row for row in rows if row[0].endswith("*")]
    if not rows:
        raise BadInput(f"there is no partition {profile.partition or 'by default'}")
    nodes = sum(int(row[3]) for row in rows if row[3].isdecimal())
    states = "/".join(sorted({row[1] for row in rows}))
    if nodes < profile.nodes:
        raise BadInput(f"it has {nodes} nodes, a job wants {profile.nodes}")
    if states != "up" and "up" not in states.split("/"):
        raise Unavailable(f"partition {rows[0][0].rstrip('*')} is {states}")
    return f"{rows[0][0].rstrip('*')}: {nodes} nodes, {states}, at most {rows[0][2]}"


def _gpus(profile: SiteProfile, commands: Commands) -> str:
    words = ["sinfo", "-h", "-o", "%G"]
    if profile.partition:
        words += ["-p", profile.partition]
    said = sorted({line.strip() for line in _ask(commands, words).out.splitlines() if line.strip()})
    found = [
        (match[1] or "", int(match[2]))
        for line in said
        for match in re.finditer(r"gpu(?::([A-Za-z][\w.-]*))?:(\d+)", line)
    ]
    fitting = [
        count for model, count in found if profile.gpu_model in ("", model) and count >= profile.gpus_per_node
    ]
    if not fitting:
        model = f" of model {profile.gpu_model}" if profile.gpu_model else ""
        raise BadInput(
            f"no node has {profile.gpus_per_node} GPUs{model}; the partition has {', '.join(said) or 'none'}"
        )
    return f"{', '.join(said)}; a job takes {profile.gpus_per_node} on each of {profile.nodes} nodes"


def _test_only(profile: SiteProfile, commands: Commands, folder: str) -> str:
    """``sbatch --test-only`` of the very options that a job gets; source: sbatch(1). Nothing is queued."""
    line = sbatch_line(Request(place=folder, life=1, command=("true",)), profile)
    options = [word for word in line[1:-1] if not word.startswith(("--output=", "--parsable", "--job-name="))]
    said = commands.run(
        ["sbatch", "--test-only", *options, "--job-name=sprachbund-doctor", "--output=/dev/null"],
        stdin=_SCRIPT,
    )
    words = " ".join((said.err.strip() or said.out.strip()).split())
    if said.rc != 0:
        raise BadInput(f"{words[:300]} (asked: {shlex.join(options)[:300]})")
    return _dated(words[:200]) or "sbatch would take it"


def _dated(words: str) -> str:
    """With a date where Slurm was asked for epoch seconds."""
    return re.sub(r"(?<=start at )[0-9]{9,11}\b", lambda found: _date(int(found[0])), words)


def _date(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))


def _ask(commands: Commands, words: list[str]) -> Completed:
    said = commands.run(words)
    if said.rc != 0:
        raise Unavailable(f"`{shlex.join(words)}` ended with {said.rc}: {said.err.strip()[:200]}")
    return said
