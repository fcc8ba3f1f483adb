"""A launcher on a Slurm of fake commands, and looks at it; the fixtures are in conftest."""

import json
import time

from launcher_contract import look

from site_agent.launchers.slurm.verdict import Patience

QUICK = Patience(intent_seconds=0.0, requeue_seconds=0.0, lost_seconds=600.0, begin_seconds=900.0)

TRAINER = """
import os, pathlib, sys, time
directory = pathlib.Path(sys.argv[1])
print("hello from", os.getpid(), flush=True)
with open(directory / "began", "a") as file:
    file.write(os.environ["SPRACHBUND_LIFE"] + "\\n")
(directory / "CONTINUE").unlink(missing_ok=True)
step = len(list((directory / "checkpoint").glob("step-*"))) if (directory / "checkpoint").exists() else 0
while not (directory / "STOP").exists():
    if (directory / "finish").exists():
        (directory / "result").mkdir()
        sys.exit(0)
    time.sleep(0.01)
if not (directory / "no progress").exists():
    (directory / "checkpoint" / f"step-{step + 1:09d}").mkdir(parents=True)
(directory / "CONTINUE").touch()
sys.exit(75)
"""


class Clock:
    """The time of the day, so much ahead; ``stop`` it, and it moves by that alone, however slow the machine is."""

    def __init__(self):
        self.ahead = 0.0
        self._stopped_at = None

    def stop(self):
        self._stopped_at = time.time()

    def __call__(self):
        return (time.time() if self._stopped_at is None else self._stopped_at) + self.ahead


def again(launcher, directory):
    """The answer to a new question."""
    launcher._pace.pause = 0.0
    return look(launcher, directory)


def end_of(directory, life=1, restart=0):
    return json.loads((directory / f"end.{life}.{restart}.json").read_text())
