"""What to run: from a job directory, a life and the site's profile to ``sbatch``'s command line and batch script.

Pure. The script keeps these promises (each learnt on a live Slurm; docs/slurm.md):

* One Slurm job owns a life (``owner.<life>``, made by a hard link, which succeeds once), and each restart of it
  begins once (``started.<life>.<restart>``). Whoever comes second, or finds a newer life, leaves at once.
* The signal before the limit, and TERM, become a STOP file that says so; the trainer's ranks poll it.
* ``end.<life>.<restart>.json`` appears whole before the script ends, unless it is killed.
* It asks to be requeued only after its own limit, with CONTINUE there and a newer training checkpoint than before.

What others of the cluster can see: a name that says nothing, and the paths of the job directory (``--chdir``, the log,
the trainer's command line), which hold the job and the attempt, and so campaign, round, kind of work and site; no
text, no language, no secret. No secret is in the environment either.
"""

import hashlib
import shlex
from collections.abc import Sequence

from consortium.canonical import Fact
from consortium.jobs import Assignment, Merge, Tokenizer
from policies.site_profile import Container, SiteProfile

#: of the trainer: there is a training checkpoint, start again (EX_TEMPFAIL of sysexits.h)
CONTINUE_LATER = 75
_CANNOT_BEGIN = 78  # EX_CONFIG: a line of the profile, or the disk, failed before the trainer
_NAME_DIGITS = 20


class Request(Fact):
    """One life to be submitted."""

    place: str  #: the job directory as the nodes see it
    life: int
    command: tuple[str, ...]  #: the trainer; the job directory becomes its last argument
    is_single: bool = False  #: one process whatever the profile says: merges and tokenizers use no more
    threads: int = 1  #: for OpenMP, and so for torch
    python_path: str = ""  #: where the agent's own interpreter finds the package, if it is not installed
    binds: tuple[str, ...] = ()  #: of a container: what the job reads besides its directory
    exclude: tuple[str, ...] = ()  #: nodes on which an earlier life hung

    @property
    def name(self) -> str:
        return job_name(self.place, self.life)


def job_name(place: str, life: int) -> str:
    """What a life can be found by; it lands in mails and monitoring, so it says nothing of campaign or attempt."""
    digest = hashlib.sha256(place.encode()).hexdigest()[:_NAME_DIGITS]
    return f"sb-{digest}-{life}"


def trainer_command(profile: SiteProfile, own_python: str) -> tuple[str, ...]:
    """``own_python`` is the agent's; a profile names another where the nodes have another."""
    return (profile.python or own_python, "-P", "-m", "site_agent.trainer")


def uses_one_process(assignment: Assignment) -> bool:
    return isinstance(assignment.work, Merge | Tokenizer)


def script_name(life: int) -> str:
    """The batch script's file in the job directory."""
    return f"batch.{life}.sh"


def log_name(life: int) -> str:
    return f"log.{life}.txt"


def sbatch_line(request: Request, profile: SiteProfile) -> tuple[str, ...]:
    """The command and its arguments. Source: sbatch(1) of 22.05 and 24.11."""
    nodes = _nodes(request, profile)
    log = f"{request.place}/{log_name(request.life)}".replace("%", "%%")
    options = [
        "--parsable",
        "--export=NONE",
        f"--job-name={request.name}",
        f"--chdir={request.place}",
        f"--output={log}",
        "--open-mode=append",
        f"--nodes={nodes}",
        "--ntasks-per-node=1",
        f"--time={profile.walltime_minutes}",
        f"--signal=B:USR1@{profile.signal_seconds}",
        "--requeue" if profile.requeue else "--no-requeue",
    ]
    named = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "reservation": profile.reservation,
        "constraint": profile.constraint,
        "cpus-per-task": str(profile.cpus_per_task) if profile.cpus_per_task else "",
        "mem": profile.memory,
        "exclude": ",".join(sorted(request.exclude)),
    }
    options += [f"--{option}={value}" for option, value in named.items() if value]
    if profile.gpus_per_node:
        options.append(_gpu_option(profile, nodes))
    options += profile.sbatch_extra
    return ("sbatch", *options, f"{request.place}/{script_name(request.life)}")


def batch_script(request: Request, profile: SiteProfile) -> str:
    """The whole text of the batch script; bash, and readable."""
    nodes = _nodes(request, profile)
    ranks = 1 if request.is_single else profile.ranks
    is_parallel = nodes * ranks > 1
    begin = "run_trainer &" if not is_parallel else _srun(nodes)
    parts = [
        _head(request, profile),
        _environment(request, profile),
        _prepare(profile),
        _trainer(request, profile, nodes, ranks),
        _CLAIM,
        _SIGNALS,
        _BEGIN.replace("@BEGIN@", begin),
        _END,
    ]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _nodes(request: Request, profile: SiteProfile) -> int:
    return 1 if request.is_single else profile.nodes


def _gpu_option(profile: SiteProfile, nodes: int) -> str:
    count = f"{profile.gpu_model}:" if profile.gpu_model else ""
    match profile.gpu_flag:
        case "gres":
            return f"--gres=gpu:{count}{profile.gpus_per_node}"
        case "gpus":
            return f"--gpus={count}{profile.gpus_per_node * nodes}"
        case "gpus-per-node":
            return f"--gpus-per-node={count}{profile.gpus_per_node}"


def _head(request: Request, profile: SiteProfile) -> str:
    requeues = profile.requeues_max if profile.requeue else 0
    return f"""#!/bin/bash
# One life of a Sprachbund job, as the site's agent hands it to sbatch. docs/slurm.md explains it.
umask 077
directory={shlex.quote(request.place)}
life={request.life}
restart=${{SLURM_RESTART_COUNT:-0}}
requeues_max={requeues}
job=${{SLURM_JOB_ID:-none}}
cd "$directory" || exit {_CANNOT_BEGIN}
"""


def _environment(request: Request, profile: SiteProfile) -> str:
    threads = str(request.threads)
    variables = {
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONSAFEPATH": "1",  # nothing in the job directory is imported
        "OMP_NUM_THREADS": threads,
        "RAYON_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
    }
    if request.python_path:
        variables["PYTHONPATH"] = request.python_path
    if profile.scratch:
        variables["TMPDIR"] = profile.scratch
    variables |= profile.environment
    lines = [f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items())]
    return "\n".join(
        [
            "# sbatch was told --export=NONE; what is set here reaches the steps.",
            "export SLURM_EXPORT_ENV=ALL",
            'export SPRACHBUND_LIFE="$life.$restart"',
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi',
            *lines,
        ]
    )


def _prepare(profile: SiteProfile) -> str:
    lines = []
    if profile.modules:
        lines.append("  command -v module >/dev/null || . /etc/profile")
        lines += [f"  module load {shlex.quote(module)} || return 1" for module in profile.modules]
    lines += [f"  {line}" for line in profile.setup]
    body = "\n".join([*lines, "  return 0"])
    return f"# Modules and lines of the site's profile.\nprepare() {{\n{body}\n}}\n"


def _trainer(request: Request, profile: SiteProfile, nodes: int, ranks: int) -> str:
    """The function that becomes the trainer; with several nodes each of them runs it."""
    command: Sequence[str] = (*request.command, request.place)
    words = " ".join(shlex.quote(word) for word in command)
    if nodes * ranks > 1:
        python = shlex.quote(profile.python or request.command[0])
        words = (
            f"{python} -P -m torch.distributed.run --nnodes={nodes} --nproc-per-node={ranks}"
            ' --node-rank="$SLURM_NODEID" --master-addr="$MASTER_ADDR" --master-port="$MASTER_PORT"'
            f" --no-python {words}"
        )
    inside = _contained(profile.container, request, profile) if profile.container else ""
    step = 'if [ "${1-}" = step ]; then run_trainer; fi\n' if nodes * ranks > 1 else ""
    wrapped = '"${container[@]}" ' + words if inside else words
    return f"run_trainer() {{\n{inside}  exec {wrapped}\n}}\n{step}"


def _contained(container: Container, request: Request, profile: SiteProfile) -> str:
    """Lines that make the array ``container``; variables are looked up where the step runs."""
    names = [
        *("LANG", "PYTHONHASHSEED", "PYTHONSAFEPATH", "OMP_NUM_THREADS", "RAYON_NUM_THREADS"),
        *("HF_HUB_OFFLINE", "SPRACHBUND_LIFE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
        *("PYTHONPATH", "TMPDIR"),
        *sorted(profile.environment),
    ]
    binds = (
        request.place,
        *request.binds,
        *container.binds,
        *((profile.scratch,) if profile.scratch else ()),
    )
    gpu = {"cuda": ["--nv"], "rocm": ["--rocm"], "none": []}[profile.gpu_type]
    words = [
        *(container.runtime, "exec", "--containall", "--pwd", request.place, *gpu),
        *(word for bind in binds for word in ("--bind", bind)),
        *container.flags,
    ]
    return (
        f"  local name container=({' '.join(shlex.quote(word) for word in words)})\n"
        f"  for name in {' '.join(dict.fromkeys(names))}; do\n"
        '    if [ -n "${!name+set}" ]; then container+=(--env "$name=${!name}"); fi\n'
        "  done\n"
        f"  container+=({shlex.quote(container.image)})\n"
    )


def _srun(nodes: int) -> str:
    """One task a node; the port differs from job to job, because a node may hold two."""
    return f"""export MASTER_ADDR MASTER_PORT
  MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
  MASTER_PORT=$((20000 + job % 20000))
  srun --nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --kill-on-bad-exit=1 \\
    bash "$directory/batch.$life.sh" step &"""


_CLAIM = r"""
# A file appears whole: written beside its name, synced, then named.
publish() {
  printf '%s\n' "$2" >".$1.$job.tmp" && sync ".$1.$job.tmp" && mv -f ".$1.$job.tmp" "$1" && sync .
}
# Like publish, where only the first one succeeds.
claim() {
  printf '%s\n' "$2" >".$1.$job.tmp" && sync ".$1.$job.tmp" && ln ".$1.$job.tmp" "$1" 2>/dev/null
  local done=$?
  rm -f ".$1.$job.tmp"
  return $done
}
if ! grep -q "\"number\":$life[,}]" life.json; then
  echo "life $life is over: a newer one has begun"
  exit 0
fi
claim "owner.$life" "$job"
owner=$(cat "owner.$life" 2>/dev/null)
if [ -z "$owner" ]; then
  echo "owner.$life cannot be made in $PWD: a full disk or quota, or a file system without hard links"
  exit @CANNOT_BEGIN@
fi
if [ "$owner" != "$job" ]; then
  echo "life $life belongs to $owner, not to $job"
  exit 0
fi
began=$(date +%s)
if ! claim "started.$life.$restart" "{\"began\":$began,\"host\":\"$(hostname)\",\"id\":\"$job\"}"; then
  if [ ! -s "started.$life.$restart" ]; then
    echo "started.$life.$restart cannot be made in $PWD: a full disk or quota"
    exit @CANNOT_BEGIN@
  fi
  echo "restart $restart of life $life has begun before"
  exit 0
fi
""".replace("@CANNOT_BEGIN@", str(_CANNOT_BEGIN))

_SIGNALS = """
# The wish to stop goes through a file: torchrun does not survive signals. It says whose wish it is; the agent's
# own STOP is empty, stays, and is never followed by a requeue.
why=exit
signals=0
wish() {
  why=$1
  signals=$((signals + 1))
  [ -e STOP ] || publish STOP "$1"
}
trap 'wish limit' USR1
trap 'wish term' TERM
rm -f CONTINUE
if [ -s STOP ]; then rm -f STOP; fi
newest() { ls -1 checkpoint 2>/dev/null | grep '^step-' | sort | tail -n 1; }
before=$(newest)
"""

_BEGIN = f"""
if prepare; then
  @BEGIN@
  pid=$!
  while :; do  # a signal ends wait early; the status of a child that has ended is kept for the next one
    seen=$signals
    wait "$pid"
    rc=$?
    [ "$signals" = "$seen" ] && break
  done
  case $rc in
    *[!0-9]*) if [ -e result ]; then rc=0; else rc=143; fi ;;  # bash 5.2 lost the status between two signals
  esac
else
  echo "a line of the site's profile failed (modules or setup)"
  rc={_CANNOT_BEGIN}
fi
"""

_END = f"""
again=false
if [ -e CONTINUE ] && [ ! -e result ]; then
  rc={CONTINUE_LATER}  # torchrun has but one exit code for all
  if [ "$(cat STOP 2>/dev/null)" = limit ] && [ "$restart" -lt "$requeues_max" ] && [ "$(newest)" != "$before" ]
  then
    again=true
  fi
fi
end() {{
  local format='{{"began":%s,"ended":%s,"id":"%s","life":%s,"rc":%s,"requeued":%s,"restart":%s,"why":"%s"}}'
  publish "end.$life.$restart.json" \\
    "$(printf "$format" "$began" "$(date +%s)" "$job" "$life" "$rc" "$1" "$restart" "$why")"
}}
end "$again"
if [ "$again" = true ]; then
  trap 'exit 0' TERM  # Slurm's, on the way to the next restart
  trap '' USR1
  if scontrol requeue "$job"; then
    sleep 120 &
    wait $!
  fi
  end false  # it was not to be; the agent submits the next life
fi
exit "$rc"
"""
