"""A Slurm of one file: real batch scripts as real processes, and every way in which its commands let one down.

``FakeSlurm(root)`` puts ``sbatch``, ``squeue``, ``sacct``, ``scancel``, ``scontrol`` and ``srun`` into ``root/bin``;
what they know lies in ``root/jobs``. ``mood`` tells a command to lie, fail or hang, ``end`` ends a job as a cluster
would.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FINAL = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "PREEMPTED", "NODE_FAIL", "OUT_OF_MEMORY")
_ALONE = "-S"  # without the packages that are installed: each look at a job runs two of these commands
_COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "srun")


class FakeSlurm:
    """For tests.

    mood keys: the commands' names. Values: down, garbage, empty, cut (last line torn), slow (seconds), for sbatch
    also refuse, lose (submits, and answers with a time-out), mute (submits, rc 0, no id); for sacct also off, late;
    besides ``hold`` (a reason: nothing starts) and ``forget`` (the queue forgets what has ended).
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        (root / "jobs").mkdir()
        for name in _COMMANDS:
            wrapper = root / "bin" / name
            python = sys.executable if name == "srun" else f"{sys.executable} {_ALONE}"
            wrapper.write_text(f'#!/bin/sh\nexec {python} {__file__} {root} {name} "$@"\n')
            wrapper.chmod(0o755)
        self.environment = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "HOME": str(root)}

    def mood(self, **moods: str | float | bool | None) -> None:
        with _locked(self.root):
            _write(self.root / "mood.json", {**_read(self.root / "mood.json", {}), **moods})

    @property
    def jobs(self) -> list[dict[str, Any]]:
        return _settled_jobs(self.root)

    @property
    def asked(self) -> list[str]:
        """The commands that were run, oldest first."""
        try:
            return (self.root / "asked").read_text().splitlines()
        except FileNotFoundError:
            return []

    def end(self, id_: str, state: str, requeue: bool = False) -> None:
        """End a running job as a cluster would: nothing of it is left, no record of its own is written."""
        _end(self.root, id_, state, requeue, signal.SIGKILL)

    def warn(self, id_: str) -> None:
        """The signal before the limit, to the batch script alone."""
        os.kill(self.job(id_)["pid"], signal.SIGUSR1)

    def job(self, id_: str) -> dict[str, Any]:
        with _locked(self.root):
            return _load(self.root, id_)

    def until_over(self, id_: str) -> dict[str, Any]:
        """The job, once it has ended; the test's own limit ends the wait."""
        while not _is_over(job := self.job(id_)):
            time.sleep(0.05)
        return job

    def change(self, id_: str, **fields: Any) -> None:
        with _locked(self.root):
            _save(self.root, {**_load(self.root, id_), **fields})

    def restart_controller(self) -> None:
        """It forgets all jobs that have ended, accounting does too, and ids begin anew."""
        with _locked(self.root):
            for job in _jobs(self.root):
                if _is_over(job):
                    (self.root / "jobs" / f"{job['id']}.json").unlink()

    def close(self) -> None:
        self.mood(hold="closing")
        for job in self.jobs:
            if not _is_over(job):
                _end(self.root, job["id"], "CANCELLED", False, signal.SIGKILL)
        from processes import wait_until_gone  # of the tests alone: the commands are this file by itself

        wait_until_gone(job["runner"] for job in self.jobs if job["runner"])


# ---- state


def _is_over(job: dict[str, Any]) -> bool:
    return job["state"].split()[0] in _FINAL


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    with open(root / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path, default: Any) -> Any:
    return json.loads(path.read_text()) if path.exists() else default


def _write(path: Path, value: Any) -> None:
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value))
    temporary.replace(path)


def _jobs(root: Path) -> list[dict[str, Any]]:
    found = []
    for path in (root / "jobs").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # the controller is restarted, and forgets it just now
            found.append(json.loads(path.read_text()))
    return sorted(found, key=lambda job: int(job["id"]))


def _settled_jobs(root: Path) -> list[dict[str, Any]]:
    """None of them between two states: one whose script runs is RUNNING, however slow whoever started it is."""
    with _locked(root):
        return _jobs(root)


def _load(root: Path, id_: str) -> dict[str, Any]:
    return dict(json.loads((root / "jobs" / f"{id_}.json").read_text()))


def _save(root: Path, job: dict[str, Any]) -> None:
    _write(root / "jobs" / f"{job['id']}.json", job)


def _end(root: Path, id_: str, state: str, requeue: bool, number: int) -> None:
    with _locked(root):
        job = _load(root, id_)
        if _is_over(job):
            return
        job["ending"], job["again"] = state, requeue
        if not job["pid"]:  # it waits, or runs by a test's word alone
            job["state"] = state
            job["end"] = time.time()
        _save(root, job)
        if job["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job["pid"], number)


# ---- the commands


def main(root: Path, name: str, arguments: list[str]) -> int:
    if name == "run":
        return _run(root, arguments[0])
    mood = _read(root / "mood.json", {})
    how = mood.get(name)
    with open(root / "asked", "a") as file:
        file.write(" ".join([name, *arguments]) + "\n")
    if isinstance(how, (int, float)) and not isinstance(how, bool):
        time.sleep(how)
    if how == "down":
        print(f"{name}: error: Unable to contact slurm controller (connect failure)", file=sys.stderr)
        return 1
    if how == "garbage":
        print("\x00\x01|||\nMOTD: welcome | to | the | machine\n|||||||||\n7|", end="")
        return 0
    if how == "empty":
        return 0
    text, rc = {
        "sbatch": _sbatch,
        "squeue": _squeue,
        "sacct": _sacct,
        "scancel": _scancel,
        "scontrol": _scontrol,
        "srun": _srun,
    }[name](root, arguments, mood)
    sys.stdout.write(text[:-9] if how == "cut" else text)
    return rc


def _option(arguments: list[str], name: str, default: str = "") -> str:
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
        if argument == name:
            return arguments[index + 1]
    return default


def _complain(words: str) -> None:
    print(f"sbatch: error: Batch job submission failed: {words}", file=sys.stderr)


_OBJECTIONS = {
    "drained": "Required partition not available (inactive or drain)",
    "object": "lua: not before noon",
}


def _sbatch(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    if mood.get("sbatch") == "refuse":
        print(
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination",
            file=sys.stderr,
        )
        return "", 1
    if mood.get("sbatch") in _OBJECTIONS:
        words = _OBJECTIONS[mood["sbatch"]]
        print(f"sbatch: error: Batch job submission failed: {words}", file=sys.stderr)
        return "", 1
    script = Path(arguments[-1])
    with _locked(root):
        id_ = str(1 + max([0, *(int(job["id"]) for job in _jobs(root))]))
        job = {
            "id": id_,
            "name": _option(arguments, "--job-name"),
            "script": script.read_text(),
            "chdir": _option(arguments, "--chdir"),
            "output": _option(arguments, "--output"),
            "may_requeue": "--requeue" in arguments,
            "state": "PENDING",
            "submit": time.time(),
            "start": None,
            "end": None,
            "restart": 0,
            "exit": "0:0",
            "pid": 0,
            "ending": "",
            "again": False,
            "history": [],
            "runner": 0,
        }
        _save(root, job)
    with open(os.devnull, "r+b") as nothing:
        runner = subprocess.Popen(
            [sys.executable, _ALONE, __file__, str(root), "run", id_],
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            start_new_session=True,
        )
    with _locked(root):
        _save(root, {**_load(root, id_), "runner": runner.pid})
    match mood.get("sbatch"):
        case "lose":
            print(
                "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
                file=sys.stderr,
            )
            return "", 1
        case "mute":
            return "\n", 0
    return f"{id_}\n", 0


def _squeue(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    assert "--me" in arguments and "-h" in arguments, arguments
    assert _option(arguments, "-o") == "%A|%T|%V|%S|%N|%j|%r", arguments
    lines = []
    for job in _settled_jobs(root):
        if mood.get("forget") and _is_over(job):
            continue
        reason = job.get("reason") or (
            mood.get("hold") or "Priority" if job["state"] == "PENDING" else "None"
        )
        nodes = "" if job["start"] is None else "node0"
        word = job["state"].split()[0]
        fields = (
            job["id"],
            word,
            _seconds(job["submit"]),
            _seconds(job["start"], "N/A"),
            nodes,
            job["name"],
            reason,
        )
        lines.append("|".join(fields) + "\n")
    return "".join(lines), 0


def _sacct(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    if mood.get("sacct") == "off":
        print("Slurm accounting storage is disabled", file=sys.stderr)
        return "", 1
    names = _option(arguments, "--name").split(",")
    assert _option(arguments, "-S").startswith("now-"), arguments
    lines = []
    for job in _settled_jobs(root):
        rows = [*job["history"], job]
        for row in rows:
            if job["name"] not in names:
                continue
            state, end = row["state"], row["end"]
            if mood.get("sacct") == "late" and row is job:
                state, end = "RUNNING", None
            started = row["start"]
            elapsed = max(0, int((end or time.time()) - started)) if started else 0
            nodes, tres = (
                ("node0", "billing=1,cpu=1,gres/gpu:a100=2,gres/gpu=2,node=1")
                if started
                else ("None assigned", "")
            )
            lines.append(
                "|".join(
                    (
                        *(job["id"], job["name"], state, row["exit"], _seconds(row["submit"])),
                        *(
                            _seconds(started, "Unknown"),
                            _seconds(end, "Unknown"),
                            str(elapsed),
                            tres,
                            "",
                            nodes,
                        ),
                    )
                )
                + "\n"
            )
    return "".join(lines), 0


def _scancel(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    assert _option(arguments, "--user") == str(os.getuid()), arguments
    for job in _settled_jobs(root):
        if job["name"] == _option(arguments, "--name"):
            _end(root, job["id"], f"CANCELLED by {os.getuid()}", False, signal.SIGKILL)
    return "", 0


def _scontrol(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    match arguments:
        case ["requeue", id_]:
            if not _load(root, id_)["may_requeue"]:
                print("Requested operation is presently disabled", file=sys.stderr)
                return "", 1
            _end(root, id_, "REQUEUED", True, signal.SIGTERM)
            return "", 0
        case ["show", "hostnames", nodes]:
            return f"{nodes}\n", 0
        case ["show", "job", "-o", id_]:
            known = {job["id"]: job for job in _settled_jobs(root)}
            if id_ not in known or mood.get("forget") == "all":
                print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
                return "", 1
            job = known[id_]
            return (
                f"JobId={id_} JobName={job['name']} UserId=x(0) JobState={job['state'].split()[0]} Reason=None "
                f"Dependency=(null) Requeue=1 Restarts={job['restart']} ExitCode={job['exit']} "
                f"SubmitTime={_seconds(job['submit'])} StartTime={_seconds(job['start'], 'Unknown')} NodeList=node0\n"
            ), 0
    raise AssertionError(arguments)


def _srun(root: Path, arguments: list[str], mood: dict[str, Any]) -> tuple[str, int]:
    """All tasks of a step on this machine, which is not theirs alone as the nodes of a cluster are.

    The batch script takes a port by the job's number, and every fake cluster, and the real one, begins with 1.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from free_ports import free_port

    shared = {**os.environ, "MASTER_PORT": str(free_port())}
    tasks = int(_option(arguments, "--ntasks"))
    command = arguments[arguments.index("bash") :]
    children = [
        subprocess.Popen(command, env={**shared, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node)})
        for node in range(tasks)
    ]
    return "", max(child.wait() for child in children)


def _seconds(at: float | None, none: str = "Unknown") -> str:
    return none if at is None else str(int(at))


# ---- one job


def _run(root: Path, id_: str) -> int:
    """The life of one Slurm job, restarts included."""
    while True:
        while True:
            with _locked(root):
                job, mood = _load(root, id_), _read(root / "mood.json", {})
                if _is_over(job):
                    return 0
                if not mood.get("hold") and not job.get("reason"):
                    break
            time.sleep(0.02)
        with open(job["output"], "ab") as log:
            with _locked(root):
                job = _load(root, id_)
                if _is_over(job):
                    return 0
                script = root / "jobs" / f"{id_}.{job['restart']}.sh"
                script.write_text(job["script"])
                script.chmod(0o755)
                restarts = {"SLURM_RESTART_COUNT": str(job["restart"])} if job["restart"] else {}
                child = subprocess.Popen(
                    ["/bin/bash", str(script)],
                    cwd=job["chdir"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    env={
                        "PATH": f"{root / 'bin'}:/usr/bin:/bin",
                        "HOME": str(root),
                        "SLURM_JOB_ID": id_,
                        "SLURM_JOB_NODELIST": "localhost",
                        **restarts,
                    },
                )
                before = max((row["start"] or 0.0 for row in job["history"]), default=0.0)
                _save(
                    root,
                    {
                        **job,
                        "state": "RUNNING",
                        "start": max(time.time(), before + 1.0),  # no Slurm starts one twice in a second
                        "end": None,
                        "pid": child.pid,
                        "ending": "",
                    },
                )
        code = child.wait()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        with _locked(root):
            job = _load(root, id_)
            exit_ = f"{code}:0" if code >= 0 else f"0:{-code}"
            state = job["ending"] or ("COMPLETED" if code == 0 else "FAILED")
            if job["ending"]:
                exit_ = "0:0" if state in ("NODE_FAIL", "REQUEUED") else "0:15"
            over = {**job, "state": state, "exit": exit_, "end": time.time(), "pid": 0}
            if not job["again"]:
                _save(root, over)
                return 0
            row = {key: over[key] for key in ("state", "exit", "submit", "start", "end")}
            _save(
                root,
                {
                    **over,
                    "state": "PENDING",
                    "exit": "0:0",
                    "submit": time.time(),
                    "start": None,
                    "end": None,
                    "restart": job["restart"] + 1,
                    "again": False,
                    "ending": "",
                    "history": [*job["history"], row],
                },
            )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
