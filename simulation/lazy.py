"""A site that does not train a second time: it delivers the delta of its first round again, and signs for it."""

from consortium.canonical import decode, replace
from consortium.files import write_bytes_atomically
from consortium.jobs import Purpose
from consortium.manifests import Contribution
from consortium.store import ref_of
from simulation.learning import Trainer
from simulation.streams import stream
from site_agent.trainer.folder import JobFolder, write_contribution


class Lazy:
    """In place of whoever works at the site. ``share``: of its later jobs, in which it is."""

    def __init__(self, trainer: Trainer, share: float, seed: int, place: str) -> None:
        self._trainer, self._share = trainer, share
        self._dice = stream(seed, "replays", place)
        self._first: dict[str, bytes] = {}  #: of each campaign

    def finish(self, folder: JobFolder, steps: int, seconds: float, spoilt: bool = False) -> None:
        self._trainer.finish(folder, steps, seconds, spoilt)
        if not self._share or folder.job.purpose is not Purpose.ROUND:
            return
        result = folder.path / "result"
        delta, manifest = result / "delta.safetensors", result / "contribution.json"
        first = self._first.setdefault(folder.job.campaign, delta.read_bytes())
        if first != delta.read_bytes() and self._dice.random() < self._share:
            write_bytes_atomically(delta, first)
            said = decode(manifest.read_bytes(), Contribution, str(manifest))
            artifacts = {**said.artifacts, "delta": ref_of(delta)}
            write_contribution(result, replace(said, artifacts=artifacts))
