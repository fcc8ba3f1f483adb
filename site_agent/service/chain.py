"""The agent as a small Slurm job that keeps a successor in the queue: what to run, and whether to submit it.

Never two at once, by two means: whoever submits looks the name up first, and a job of the name starts only when
no other of it runs (``--dependency=singleton``). The successor is submitted when a job begins, not when it ends,
so that a node that dies does not end the chain; it waits a while before it may begin, so that an agent that fails
at once cannot flood the queue.
"""

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from consortium.canonical import Fact
from consortium.errors import BadInput, Refused, Unavailable
from consortium.files import disk_errors, make_folder, write_bytes_atomically
from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig
from site_agent.launchers.slurm.answer import Queue, QueueRow
from site_agent.launchers.slurm.commands import Commands, LocalCommands
from site_agent.launchers.slurm.controller import Controller
from site_agent.launchers.slurm.submission import Submission
from site_agent.launchers.slurm.words import State, state_of

MINUTES = 240
_BEGIN_MINUTES = 10  # between the beginnings of two links at least
_SIGNAL_SECONDS = 120  # before the limit: the agent leaves within one, whatever it does
_MEMORY = "1G"  # the agent takes 80 MB, and reading text anew takes more

_SCRIPT = """\
#!/bin/bash
# The agent of a Sprachbund site for one walltime; it submits its successor and leaves before the limit.
# To end the chain: scancel --name=@NAME@
umask 077
cd @FOLDER@ || exit 2
@ENVIRONMENT@
successor() {
  @SUCCESSOR@
}
successor || echo "no successor yet; it is tried again at the end"
# USR1 comes before the limit; TERM from scancel, which is how the chain ends.
signals=0
ends=
leave() {
  signals=$((signals + 1))
  kill -TERM "$agent"
}
trap leave USR1
trap 'ends=cancelled; leave' TERM
@AGENT@ &
agent=$!
while :; do  # a signal ends wait early; the status of a child that has ended is kept for the next one
  seen=$signals
  wait "$agent"
  rc=$?
  [ "$signals" = "$seen" ] && break
done
case $rc in
  2 | 3 | 4 | 7)  # starting again cannot help: consortium/errors.py; after 8, superseded, it can
    echo "the agent left with exit code $rc; the chain ends"
    scancel --user="$(id -u)" --name="$SLURM_JOB_NAME" --state=PENDING
    ;;
  *) [ -n "$ends" ] || successor ;;
esac
exit "$rc"
"""


class Link(Fact):
    """One job of the chain."""

    name: str
    folder: str  #: absolute: the site's home
    config: str  #: absolute
    python: str
    environment: dict[str, str] = {}
    minutes: int = MINUTES
    partition: str = ""
    extra: tuple[str, ...] = ()  #: more options of sbatch


class Chained(Fact):
    """What became of the wish for a job."""

    id: str
    is_new: bool


def chain_name(site: str) -> str:
    return f"sprachbund-agent-{site}"


def script(link: Link) -> str:
    again = [link.python, "-P", "-m", "console.main", "site", "service", link.config, "--slurm", "--submit"]
    again += [f"--minutes={link.minutes}", *([f"--partition={link.partition}"] if link.partition else [])]
    again += [f"--sbatch={option}" for option in link.extra]
    agent = [link.python, "-P", "-m", "console.main", "site", "run", link.config]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(link.environment.items())]
    words = {
        "NAME": link.name,
        "FOLDER": shlex.quote(link.folder),
        "ENVIRONMENT": "\n".join(exports),
        "SUCCESSOR": shlex.join(again),
        "AGENT": f"nice -n 10 {shlex.join(agent)}",
    }
    text = _SCRIPT
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def sbatch_line(link: Link, profile: SiteProfile, *, is_successor: bool) -> tuple[str, ...]:
    """Without the GPUs and nodes of the profile: the agent needs a core, a little memory and the network."""
    options = [
        "--parsable",
        "--export=NONE",
        f"--job-name={link.name}",
        f"--chdir={link.folder}",
        f"--output={str(script_folder(link)).replace('%', '%%')}/%j.log",
        "--nodes=1",
        "--ntasks=1",
        "--cpus-per-task=1",
        f"--mem={_MEMORY}",
        f"--time={link.minutes}",
        f"--signal=B:USR1@{_SIGNAL_SECONDS}",
        "--dependency=singleton",
        "--no-requeue",
    ]
    if is_successor:
        options.append(f"--begin=now+{_BEGIN_MINUTES}minutes")
    named = {
        "partition": link.partition or profile.partition,
        "account": profile.account,
        "qos": "" if link.partition else profile.qos,  # another partition, another QOS: `--sbatch` names it
    }
    options += [f"--{option}={value}" for option, value in named.items() if value]
    return ("sbatch", *options, *link.extra, str(script_path(link)))


def script_folder(link: Link) -> Path:
    return Path(link.folder) / "service"


def script_path(link: Link) -> Path:
    return script_folder(link) / "agent.sh"


def others(queue: Queue, name: str, own_id: str) -> tuple[QueueRow, ...]:
    """The jobs of the chain that run or wait, less the one that asks. Raises Unavailable if nobody can tell."""
    if queue.problem or not queue.is_whole:
        raise Unavailable(
            f"squeue: {queue.problem or 'its answer was not whole'}; nothing was submitted, try again later"
        )
    return tuple(
        row
        for row in queue.rows
        if row.name == name and row.id != own_id and state_of(row.state) is not State.FINAL
    )


def taken(submission: Submission) -> str:
    """The new job's id. Raises BadInput or Unavailable with Slurm's own words."""
    if submission.refused:
        raise BadInput(f"sbatch: {submission.refused}; correct the profile, --partition or --sbatch")
    if submission.later or submission.unsure:
        raise Unavailable(f"sbatch: {submission.later or submission.unsure}; try again later")
    return submission.id


def write_script(link: Link) -> None:
    with disk_errors(script_path(link)):
        make_folder(script_folder(link))
        write_bytes_atomically(script_path(link), script(link).encode(), mode=0o700)


def check(minutes: int, extra: Sequence[str]) -> None:
    """Raises BadInput, Refused."""
    if minutes * 60 <= 2 * _SIGNAL_SECONDS + _BEGIN_MINUTES * 60:
        raise BadInput(f"--minutes {minutes} is too short for a chain; give 30 at least")
    if any(option.split("=")[0] in ("--dependency", "-d", "--job-name", "-J") for option in extra):
        raise Refused("--sbatch: name and dependency keep two chains apart; leave them as they are")


def submit(link: Link, config: SiteConfig, own_id: str, commands: Commands | None = None) -> Chained:
    """Put a job of the chain into the queue, unless one that is not ``own_id`` is there.

    own_id  of the Slurm job that asks, "" outside of one: inside, the new one is its successor
    Raises Refused for a site without a Slurm of its own here, BadInput for what Slurm refuses, Unavailable.
    """
    if config.slurm is None or config.ssh is not None:
        raise Refused(
            "the agent can be a Slurm job where it runs at the site: `launcher: slurm` with a profile, no `ssh`"
        )
    controller = Controller(commands or LocalCommands(), time.time)
    there = others(controller.queue(), link.name, own_id)
    if there:
        return Chained(id=there[0].id, is_new=False)
    write_script(link)
    line = sbatch_line(link, config.slurm, is_successor=bool(own_id))
    return Chained(id=taken(controller.submit(line)), is_new=True)
