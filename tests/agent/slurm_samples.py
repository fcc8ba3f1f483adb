"""A life in Slurm, as the queue, accounting and its own record tell of it, for the tests of pure verdicts."""

from site_agent.launchers.base import Life
from site_agent.launchers.slurm.answer import AccountRow, QueueRow
from site_agent.launchers.slurm.commands import Completed
from site_agent.launchers.slurm.usage import LifeEnd

LIFE = Life(number=1, name="sb-1-1", host="slurm", native_id="7", submitted_at=1000.0)
ROW = QueueRow(id="7", state="RUNNING", name="sb-1-1", submitted=1000.0, starts=1010.0, nodes="node0")
PAST = AccountRow(
    id="7",
    name="sb-1-1",
    state="COMPLETED",
    exit_code=0,
    exit_signal=0,
    submitted=1000.0,
    started=1010.0,
    ended=1070.0,
    elapsed=60.0,
    gpus=4.0,
    joules=None,
)
END = LifeEnd(began=1010.0, ended=1070.0, id="7", life=1, rc=0, restart=0, why="exit")


def said(out="", rc=0, err=""):
    return Completed(rc=rc, out=out, err=err)
