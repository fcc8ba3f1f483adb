"""How a site's batch system wants its jobs: where to ask, for what, for how long, and what surrounds the trainer.

A profile is YAML: a preset in ``policies/sites/`` (``slurm: lumi`` in a site's config), or one with some keys
changed (``slurm: {preset: lumi, account: project_123}``).
"""

import re
from typing import Annotated, Any, Literal

from msgspec import Meta

from consortium.canonical import Fact
from consortium.checking import Place
from consortium.loading import Document, Problems
from policies.presets import filled_in, names_in, read_preset
from policies.ranges import Count, Natural, Positive

FOLDER = "sites"

#: What reaches a command line of ``sbatch`` as the value of an option.
Value = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_.,:=@%+*&|!()\[\]/-]*$",
        description="text without blanks, quotes and other signs that a shell reads",
    ),
]
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: The batch script and the launcher depend on these being as they set them.
_OURS = (
    *("array", "chdir", "comment", "cluster-constraint", "clusters", "dependency", "error", "export"),
    *("export-file", "hold", "job-name", "no-requeue", "open-mode", "output", "parsable", "requeue"),
    *("signal", "test-only", "uid", "wait", "wrap"),
)
_OUR_LETTERS = "aCDdeHhJMoQVW"  # the same in short, and what prints instead of submitting


class Container(Fact):
    """An image that the trainer runs in."""

    image: str  #: a .sif file, or what the runtime understands
    runtime: Literal["apptainer", "singularity"] = "apptainer"
    flags: tuple[str, ...] = ()  #: besides --containall, --bind, --env and --nv or --rocm
    binds: tuple[str, ...] = ()  #: besides the job directory, the site's home and its text


class SiteProfile(Fact):
    """What a batch script of this site looks like. Empty text: the option is not given.

    ``unverified`` names the keys whose values were not read in the site's own documents (nor tried there);
    ``sources`` says where values are from.
    """

    description: str = ""
    partition: Value = ""
    account: Value = ""
    qos: Value = ""
    reservation: Value = ""
    constraint: Value = ""
    nodes: Count = 1
    gpus_per_node: Natural = 0  #: 0: CPU
    gpu_type: Literal["cuda", "rocm", "none"] = "none"
    gpu_model: Value = ""  #: as Slurm calls it, such as a100; "": any
    gpu_flag: Literal["gpus-per-node", "gres", "gpus"] = "gpus-per-node"
    ranks_per_node: Count | None = None  #: processes of one job on a node; None: one a GPU, at least one
    #: how ranks share a model, if the site's config is silent
    sharding: Literal["none", "fsdp", "hsdp"] = "none"
    cpus_per_task: Natural = 0  #: cores of one node; 0: the site's default
    memory: Value = ""  #: of one node, such as 120G or 0 (all of it)
    walltime_minutes: Count = 60  #: of one life
    walltime_minutes_max: Count | None = None  #: what the site allows; None: not known
    signal_seconds: Count = 300  #: before the limit: twice the time of a training checkpoint, and 60
    requeue: bool = True  #: go on as the same Slurm job; false: a new Slurm job each life
    requeues_max: Natural = 100  #: of one Slurm job
    modules: tuple[str, ...] = ()  #: for ``module load``
    setup: tuple[str, ...] = ()  #: lines of bash before the trainer
    container: Container | None = None
    python: str = ""  #: the interpreter that has sprachbund at the site; "": the agent's own
    scratch: str = ""  #: folder for what may be lost; "": the site decides
    proxy: str = ""  #: of the agent's host, for its way to the coordinator; jobs need none
    sbatch_extra: tuple[str, ...] = ()  #: more options, one an item
    poll_seconds: Positive = 30.0  #: between questions to Slurm
    environment: dict[str, str] = {}  #: of the job; never secrets, the script is kept in the job directory
    unverified: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    notes: str = ""

    @property
    def ranks(self) -> int:
        """Processes of one job on each node."""
        return self.ranks_per_node or max(1, self.gpus_per_node)

    @property
    def is_parallel(self) -> bool:
        """Whether a job is more than one process."""
        return self.nodes * self.ranks > 1


def profile_names() -> tuple[str, ...]:
    """What may stand after ``slurm:``."""
    return names_in(FOLDER)


def load_profile(name: str) -> SiteProfile:
    """A preset as it is. Raises BadInput with every ``file:line`` that is wrong, or if there is none."""
    document = read_preset(FOLDER, "slurm", name)
    problems = Problems(document)
    problems.check(document.value, SiteProfile)
    check_profile(document.value, (), problems)
    problems.raise_if_any()
    return document.convert(SiteProfile)


def fill_in_profile(document: Document, problems: Problems, section: str = "slurm") -> None:
    """In a site's config: the profile that its ``slurm:`` stands for, in its place."""
    plain = document.value
    if isinstance(plain, dict) and plain.get(section) is not None:
        whole = filled_in(FOLDER, section, plain[section], problems)
        document.value = {**plain, section: whole}
        check_profile(whole, (section,), problems)


def check_profile(plain: Any, place: Place, problems: Problems) -> None:
    """Note what types cannot say; values of a wrong type are passed over, others tell of them."""
    if not isinstance(plain, dict):
        return

    def number(key: str, default: int) -> int:
        value = plain.get(key, default)
        return value if isinstance(value, int) else default

    walltime, signal = number("walltime_minutes", 60), number("signal_seconds", 300)
    longest = plain.get("walltime_minutes_max")
    if isinstance(longest, int) and walltime > longest:
        problems.add((*place, "walltime_minutes"), f"{walltime} is above this site's {longest}; lower it")
    if signal >= walltime * 60:
        problems.add(
            (*place, "signal_seconds"),
            f"{signal} leaves nothing of {walltime} minutes of walltime; lower it or raise walltime_minutes",
        )
    gpus, kind = number("gpus_per_node", 0), plain.get("gpu_type", "none")
    if (gpus > 0) != (kind != "none"):
        problems.add(
            (*place, "gpu_type"),
            f"{kind} does not go with gpus_per_node {gpus}; CPU is none and 0, GPUs are cuda or rocm and a number",
        )
    for index, option in enumerate(_texts(plain.get("sbatch_extra"))):
        sentence = _refused_option(option)
        if sentence:
            problems.add((*place, "sbatch_extra", index), sentence)
    environment = plain.get("environment")
    for name in environment if isinstance(environment, dict) else ():
        if not _VARIABLE.fullmatch(name):
            problems.add((*place, "environment", name), "is no name of a variable; use letters, digits and _")
    for index, key in enumerate(_texts(plain.get("unverified"))):
        if key not in SiteProfile.__struct_fields__:
            problems.add((*place, "unverified", index), f"{key!r} is no key of a profile; name one that is")


def _refused_option(option: str) -> str:
    if not option.startswith("-") or any(sign in option for sign in "\n\r\0"):
        return f"{option!r} is no option of sbatch; write --name or --name=value, one an item"
    name = option.lstrip("-").partition("=")[0]
    short = not option.startswith("--")
    if (short and name[:1] in _OUR_LETTERS) or (not short and name in _OURS):
        return f"{option.partition('=')[0]} is set by the launcher, which depends on it; leave it out"
    return ""


def _texts(value: Any) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
