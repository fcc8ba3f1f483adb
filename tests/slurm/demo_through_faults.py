"""The demo through a real Slurm that everything happens to; the same model must come out as without Slurm.

    python tests/slurm/demo_through_faults.py                 a small campaign, as CI runs it: minutes
    python tests/slurm/demo_through_faults.py --full          the demo's own campaign, cut by a walltime of a minute

First the local launcher, undisturbed, gives the digest. Then the same campaign and seed go through a Slurm of this
script's own, on two virtual sites of nodes: north and west compute on one, centre (preemptible) and south on the
other. A walltime cut, a node that dies, a preemption, a restart of the controller and a SIGKILL for an agent fall on
jobs that run. The promoted version must be the one of the first run, and each fault must be in Slurm's own records.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parent / "chaos")]

from cluster import Cluster, what_is_missing  # noqa: E402
from cluster_settings import PORTS, Settings  # noqa: E402
from free_ports import free_row  # noqa: E402
from kill_anything import Outcome, lay_out, outcome_of, run, without_rivals  # noqa: E402

from console.demo import consortium_at, slurm_of_sites, start, views  # noqa: E402
from console.local import LocalConsortium  # noqa: E402

FAULTS = ("walltime cut", "node failure", "preemption", "controller restart", "agent kill")


def small(plan: dict[str, Any]) -> None:
    """Half the seed, the demo's own rounds: jobs long enough to be hit, with training checkpoints on the way."""
    without_rivals(plan)
    plan["rounds"] = 3
    plan["seed_round"]["steps"] = 120
    plan["train"]["checkpoint_steps"] = 5
    plan["admission"]["norm_max"] = 3.0  # a model that young moves even farther


@dataclass(frozen=True, slots=True)
class Running:
    """One Slurm job of a site that runs now."""

    id: str
    node: str
    partition: str
    place: Path  #: its job directory

    @property
    def trains(self) -> bool:
        """Training, and far enough that a training checkpoint is there."""
        return any(self.place.glob("checkpoint/step-*"))


@dataclass(slots=True)
class Story:
    """What was done to the consortium, and when."""

    began: float = field(default_factory=time.monotonic)
    lines: list[dict[str, Any]] = field(default_factory=list)
    is_over: bool = False

    def tell(self, fault: str, what: str) -> None:
        line = {"fault": fault, "after": round(time.monotonic() - self.began, 1), "what": what}
        self.lines.append(line)
        print(json.dumps(line), flush=True)


def strike(here: LocalConsortium, cluster: Cluster, story: Story, dice: random.Random) -> None:
    """All five faults, one after the other, each on something that runs."""

    def victim(wanted: Callable[[Running], bool]) -> Running:
        while not story.is_over:
            found = [job for job in running_jobs(cluster) if wanted(job)]
            if found:
                return dice.choice(found)
            time.sleep(0.1)
        raise RuntimeError("the campaign was over before every fault had fallen; give it more steps")

    job = victim(lambda job: job.trains)
    cluster.run("scancel", "--batch", "--signal=USR1", job.id)  # what Slurm sends before the limit
    story.tell("walltime cut", f"job {job.id} ({job.place.name}) on {job.node}")

    job = victim(lambda job: job.partition == "preempt" and job.trains)
    intruder = ("-A", "north", "-p", "south", "-w", job.node, "--exclusive", "-t", "1", "-o", "/dev/null")
    cluster.run("sbatch", *intruder, "--job-name=intruder", "--wrap", "sleep 1")
    story.tell("preemption", f"job {job.id} ({job.place.name}) on {job.node}")

    name = dice.choice([site.name for site in here.sites])
    process = here.processes[f"agent-{name}"]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2.0)
    here.start_agent(name)
    story.tell("agent kill", f"agent-{name}, back after 2 s")

    job = victim(lambda job: job.partition == "north" and job.trains)
    cluster.kill_node(job.node)
    story.tell("node failure", f"{job.node} with job {job.id} ({job.place.name})")
    cluster.wait(120, "the controller's giving it up", lambda: _is_down(cluster, job.node))
    cluster.up()
    story.tell("node failure", f"{job.node} is back")

    job = victim(lambda job: True)
    cluster.stop_controller()
    time.sleep(5.0)
    cluster.up()
    story.tell("controller restart", f"down for 5 s while job {job.id} ({job.place.name}) ran")


def running_jobs(cluster: Cluster) -> list[Running]:
    found = []
    for line in cluster.run("squeue", "-h", "-t", "R", "-o", "%A|%N|%P|%j|%Z", check=False).splitlines():
        id_, node, partition, name, place = line.split("|", 4)
        if name.startswith("sb-"):
            found.append(Running(id_, node, partition, Path(place)))
    return sorted(found, key=lambda job: int(job.id))


def _is_down(cluster: Cluster, node: str) -> bool:
    return "down" in cluster.run("sinfo", "-hN", "-n", node, "-o", "%t", check=False)


def through_slurm(
    workdir: Path,
    seed: int,
    change: Callable[[dict[str, Any]], None],
    cluster: Cluster,
    minutes: int,
    dice: int,
) -> tuple[Outcome, Story]:
    """The campaign on the cluster, with all faults."""
    os.environ.update({name: cluster.environment[name] for name in ("SLURM_CONF", "PATH")})
    profile = [
        *(f"walltime_minutes={minutes}", f"signal_seconds={15 if minutes == 1 else 30}", "memory=1000M"),
        *("north:account=north", "north:partition=north", "west:account=north", "west:partition=north"),
        *("centre:account=south", "centre:partition=preempt", "centre:sbatch_extra=[--nodelist=node3]"),
        *("south:account=south", "south:partition=south", "south:sbatch_extra=[--exclude=node3]"),
    ]
    here = consortium_at(workdir, slurm_of_sites(profile))
    campaign = lay_out(here, seed, change)
    story, failed = Story(), []

    def strikes() -> None:
        try:
            strike(here, cluster, story, random.Random(dice))
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=strikes, daemon=True)
    try:
        start(here, campaign)
        thread.start()
        for view in views(here):
            last = view
    finally:
        story.is_over = True
        thread.join(180)
        here.stop()
    if failed:
        raise failed[0]
    return outcome_of(last, time.monotonic() - story.began, "through Slurm"), story


def states(cluster: Cluster) -> dict[str, int]:
    """How often Slurm's own records say each state, over all lives of all jobs."""
    count: dict[str, int] = {}
    for line in cluster.run("sacct", "-nXPD", "-S", "now-12hours", "-o", "State,JobName").splitlines():
        state, _, name = line.partition("|")
        if name.startswith("sb-"):
            count[state.split()[0]] = count.get(state.split()[0], 0) + 1
    return dict(sorted(count.items()))


def problems(found: dict[str, int], story: Story) -> list[str]:
    """What should have happened and did not."""
    told = {line["fault"] for line in story.lines}
    missing = [fault for fault in FAULTS if fault not in told]
    wanted = {"walltime cut": "REQUEUED", "preemption": "PREEMPTED", "node failure": "NODE_FAIL"}
    return missing + [
        f"no {state} in sacct: {fault}" for fault, state in wanted.items() if not found.get(state)
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--full", action="store_true", help="the demo's own campaign, at a walltime of a minute"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the campaign")
    parser.add_argument("--dice", type=int, default=0, help="seed of the victims")
    parser.add_argument("--keep", type=Path, help="keep the runs below this folder")
    parser.add_argument("--digest", help="the undisturbed run's version, if it is known; saves that run")
    given = parser.parse_args()
    if problem := what_is_missing():
        print(f"no Slurm: {problem}; .ci/run installs it on Debian", file=sys.stderr)
        return 1
    root = given.keep or Path(tempfile.mkdtemp(prefix="sprachbund-slurm-"))
    change = without_rivals if given.full else small
    wanted = given.digest
    if not wanted:
        calm = run(root / "local", given.seed, change)
        wanted = calm.version
        print(json.dumps({"run": "local", "version": wanted, "seconds": round(calm.seconds, 1)}), flush=True)
    place = Path(tempfile.mkdtemp(prefix="slurm-"))
    place.chmod(0o755)
    cluster = Cluster(Settings(root=place, nodes=4, port=free_row(PORTS), node_timeout=10, cluster="demo"))
    try:
        cluster.up()
        outcome, story = through_slurm(
            root / "slurm", given.seed, change, cluster, 1 if given.full else 10, given.dice
        )
        found = states(cluster)
    finally:
        cluster.down(purge=True)
    bad = problems(found, story)
    same = outcome.version == wanted
    report = {"run": "slurm", "same": same, "version": outcome.version, "seconds": round(outcome.seconds, 1)}
    print(json.dumps({**report, "lives": found, "missing": bad}), flush=True)
    if not given.keep and same and not bad:
        shutil.rmtree(root)
    return 0 if same and not bad else 1


if __name__ == "__main__":
    sys.exit(main())
