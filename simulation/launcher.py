"""What one simulated agent asks its batch system through, and how often nobody answers.

Keeps the promises of ``site_agent.launchers.base``.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from consortium.canonical import encode, replace
from consortium.errors import Refused, Unavailable
from consortium.files import write_bytes_atomically
from simulation.cluster import Cluster
from simulation.streams import stream
from site_agent.core.facts import Seen, Sighting
from site_agent.launchers.base import LIFE_FILE, Life
from site_agent.trainer.folder import FINISH, STOP


class SimulatedLauncher:
    """Satisfies ``site_agent.launchers.base.Launcher``, for one agent.

    look_seconds  how often it looks though nothing happens; what happens wakes it
    """

    def __init__(self, cluster: Cluster, look_seconds: float) -> None:
        self._cluster = cluster
        self._look_seconds = look_seconds
        self._is_urgent = False
        self._dice = stream(cluster.seed, "launcher", cluster.plan.name)

    @property
    def poll_seconds(self) -> float:
        return min(60.0, self._look_seconds) if self._is_urgent else self._look_seconds

    def submit(self, directory: Path, life: int) -> None:
        path, conduct = directory / LIFE_FILE, self._cluster.conduct
        conduct.asks(directory.name, life)
        if life == 1 and self._cluster.refuses(directory):
            conduct.refused(directory.name)
            raise Refused(
                "sbatch: error: Batch job submission failed: Job violates accounting policy (simulated)"
            )
        intent = Life(number=life, name=f"{directory.name}#{life}", host=self._cluster.plan.name)
        write_bytes_atomically(path, encode(intent))
        if self._fails():
            raise Unavailable("sbatch: error: Unable to contact slurm controller (simulated)")
        native = self._cluster.submit(directory, life)
        if self._fails():
            raise Unavailable("sbatch: error: Socket timed out on send/recv operation (simulated)")
        write_bytes_atomically(path, encode(replace(intent, native_id=native)))

    def poll(self, directories: Sequence[Path]) -> dict[Path, Sighting]:
        self._is_urgent = any(
            os.path.exists(f"{directory}/{name}") for directory in directories for name in (STOP, FINISH)
        )
        if self._fails():
            why = Sighting(seen=Seen.UNKNOWN, detail="squeue: error: Unable to contact slurm controller")
            self._is_urgent = True
            return dict.fromkeys(directories, why)
        return {directory: self._cluster.sight(directory) for directory in directories}

    def cancel(self, directory: Path) -> None:
        if self._fails():
            raise Unavailable("scancel: error: Unable to contact slurm controller (simulated)")
        self._cluster.cancel(directory)

    def _fails(self) -> bool:
        """A controller that does not answer; as often as the weather loses messages."""
        loss = self._cluster.weather.loss
        if not loss or self._dice.random() >= loss:
            return False
        self._cluster.silences += 1
        if not self._cluster.falls("silence", self._cluster.plan.name, self._cluster.silences):
            return False
        self._cluster.conduct.is_silent()
        return True
