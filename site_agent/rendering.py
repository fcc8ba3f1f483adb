"""What exactly a job would hand to Slurm: the command line and the batch script, to be read before trusting them."""

from pathlib import Path

from consortium import ids
from consortium.canonical import Fact, decode
from consortium.errors import BadInput, Refused
from consortium.jobs import Assignment
from consortium.loading import read_bytes
from site_agent.config import SiteConfig
from site_agent.launchers.slurm.request import batch_script, sbatch_line, uses_one_process
from site_agent.launching import slurm_launcher

_EXAMPLE = ids.AttemptId("example_r1-xx.a1")


class Rendered(Fact):
    """A first life, as it would be submitted."""

    attempt: str
    directory: str  #: of the job, as the nodes see it
    name: str  #: of the Slurm job
    command: tuple[str, ...]
    script: str
    unverified: tuple[str, ...]  #: keys of the profile that nobody has tried at this site


def render(config: SiteConfig, job: str | None = None) -> Rendered:
    """Asks nobody and changes nothing.

    job  the path of a ``job.json``, or an attempt in the site's spool; None: any training job
    Raises BadInput if there is no such job, Refused if the site does not launch through Slurm.
    """
    if config.launcher != "slurm" or config.slurm is None:
        raise Refused(
            f"site {config.site} launches with `launcher: {config.launcher}`, which has no batch script; "
            f"set `launcher: slurm` and `slurm:` to a profile"
        )
    attempt, assignment = _order(config, job)
    directory = Path(config.home) / "spool" / ids.job_of(attempt) / attempt
    is_single = assignment is not None and uses_one_process(assignment)
    request = slurm_launcher(config).request(directory, 1, is_single)
    return Rendered(
        attempt=attempt,
        directory=request.place,
        name=request.name,
        command=sbatch_line(request, config.slurm),
        script=batch_script(request, config.slurm),
        unverified=config.slurm.unverified,
    )


def _order(config: SiteConfig, job: str | None) -> tuple[ids.AttemptId, Assignment | None]:
    if job is None:
        return _EXAMPLE, None
    path = Path(job)
    if not path.is_file():
        try:
            attempt = ids.attempt_id(job)
        except (BadInput, ValueError) as error:
            raise BadInput(f"{job}: neither a file nor an attempt ({error}); give a job.json") from error
        path = Path(config.home) / "spool" / ids.job_of(attempt) / attempt / "job.json"
    assignment = decode(read_bytes(path), Assignment, str(path))
    return assignment.attempt, assignment
