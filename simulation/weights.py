"""What each blob weighs in the simulated world, where a few kilobytes stand for a model of the plan's size."""

from consortium.canonical import decode
from consortium.codecs.names import DENSITY, EncodingName
from consortium.errors import BadInput
from consortium.ids import Digest
from consortium.jobs import Merge, Train
from consortium.manifests import Contribution, VersionManifest
from simulation.learning import Trainer
from site_agent.trainer.folder import JobFolder

#: Of a delta, beside a model in bf16: the bytes of an element over two.
_SHARES: dict[EncodingName, float] = {
    "bf16": 1.0,
    "fp32": 2.0,
    "int8": 0.5,
    "int4": 0.25,
    "topk": 0.025,  # 0.05 bytes an element at the density that is told nobody
}


class Weights:
    """model_bytes  of a version, whole"""

    def __init__(self, model_bytes: int) -> None:
        self._model_bytes = model_bytes
        self._known: dict[Digest, float] = {}

    def of(self, digest: str) -> float:
        """How many bytes of the simulated world one byte of a blob stands for."""
        return self._known.get(Digest(digest), 1.0)

    def version(self, manifest: VersionManifest) -> None:
        """Its tensors are the model; the rest of its files are as small as they look."""
        files = {name: ref for name, ref in manifest.files.items() if name.endswith(".safetensors")}
        total = sum(ref.size for ref in files.values())
        for _, ref in sorted(files.items()):
            self._known[ref.digest] = self._model_bytes / total

    def result(self, folder: JobFolder) -> None:
        """Of a job that has delivered: a delta weighs what its encoding makes of the model."""
        result, work = folder.path / "result", folder.job.work
        try:
            if isinstance(work, Merge):
                path = result / "version.json"
                self.version(decode(path.read_bytes(), VersionManifest, str(path)))
            if isinstance(work, Train):
                path = result / "contribution.json"
                delta = decode(path.read_bytes(), Contribution, str(path)).artifacts["delta"]
                dense = work.delta_density / DENSITY if work.delta_dtype == "topk" else 1.0
                share = _SHARES[work.delta_dtype] * dense
                self._known[delta.digest] = self._model_bytes * share / delta.size
        except (BadInput, FileNotFoundError, KeyError):
            return  # a result that nobody will take


class Weighed:
    """A trainer whose results are put on the scales."""

    def __init__(self, trainer: Trainer, weights: Weights) -> None:
        self._trainer, self._weights = trainer, weights

    def finish(self, folder: JobFolder, steps: int, seconds: float, spoilt: bool = False) -> None:
        self._trainer.finish(folder, steps, seconds, spoilt)
        self._weights.result(folder)
