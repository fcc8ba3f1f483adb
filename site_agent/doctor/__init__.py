"""What is wrong with a site, before it costs somebody a night: one check a line, each with its way out."""

import importlib.util
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from consortium.errors import SprachbundError, Unavailable
from site_agent.cleaning import last_cleaning
from site_agent.config import SiteConfig, Text
from site_agent.core.closing import closing
from site_agent.doctor.check import Check, check, warning
from site_agent.doctor.disk import disk_checks
from site_agent.doctor.network import clock, network_checks
from site_agent.doctor.slurm import slurm_checks
from site_agent.launchers.slurm.commands import LocalCommands
from site_agent.launching import make_launcher
from site_agent.spending import Spending
from site_agent.ssh.checks import ssh_checks
from site_agent.ssh.remote import remote_site
from site_agent.status import SiteStatus, site_status
from site_agent.text import files_of

__all__ = ["Check", "doctor"]

_GPU_SECONDS = 30.0
_LEFT_SHARE_MIN = 0.05  # of an allocation, below which a word is due


def doctor(config: SiteConfig) -> list[Check]:
    """Every check, good or not. Does not speak to the coordinator in the agent's place, and submits nothing."""
    checks = [*disk_checks(Path(config.home)), *_cleaning(config), *network_checks(config)]
    checks.append(
        check("launcher", lambda: _launcher(config), "choose another `launcher` in the site's config")
    )
    site = remote_site(config)
    if config.slurm is not None and site is not None:
        for one in ssh_checks(config):
            checks.append(check(*one))
            if not checks[-1].is_good and one.name == "ssh":
                break
        if checks[-1].is_good:
            checks += slurm_checks(config.slurm, site.commands, site.settings.root)
    elif config.slurm is not None:
        checks += slurm_checks(config.slurm, LocalCommands(), config.home)
    elif config.launcher == "local":
        if config.gpus:
            checks.append(check("gpus", lambda: _gpus(config.gpus), "correct `gpus`, or see the driver"))
        checks.append(
            check("software", _software, "install the project's dependencies into this environment")
        )
    if config.granted is not None:
        checks.append(_allocation(config))
    if config.ssh is None:
        for text in config.text:
            checks.append(check(f"text {text.language}", partial(_text, text), "correct its `path`"))
        checks += _manifest(config)
    try:
        checks += _agent(site_status(config), any(one.name == "clock" for one in checks))
    except SprachbundError as error:
        code = error.exit_code
        checks.append(
            Check(
                name="spool", is_good=False, detail=str(error), way_out="see `spool/` by hand", exit_code=code
            )
        )
    return checks


def _cleaning(config: SiteConfig) -> Iterator[Check]:
    """What the last cleaning could not do; nothing is said of one that did it all."""
    last = last_cleaning(Path(config.home))
    if last is not None and (said := last.over or last.trouble):
        way_out = "raise `cleaning.bytes_max` or `inodes_max`, or free space in `home` by hand"
        yield warning("cleaning", said, way_out if last.over else "see `sprachbund site clean`")


def _launcher(config: SiteConfig) -> str:
    make_launcher(config)
    return f"{config.launcher}, {config.slots} jobs at once"


def _software() -> str:
    missing = [name for name in ("torch", "transformers", "tokenizers") if not importlib.util.find_spec(name)]
    if missing:
        raise OSError(f"not installed: {', '.join(missing)}")
    return "torch, transformers and tokenizers are installed"


def _gpus(wanted: int) -> str:
    """By the vendors' own tools: importing torch for it would take seconds and gigabytes."""
    for command, sign in ((["nvidia-smi", "-L"], "GPU "), (["rocm-smi", "--showid"], "GPU[")):
        if shutil.which(command[0]) is None:
            continue
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_GPU_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{command[0]} does not answer; the driver may hang") from error
        found = sum(line.startswith(sign) for line in done.stdout.splitlines())
        if done.returncode != 0 or found < wanted:
            raise Unavailable(f"{command[0]} shows {found} GPUs, a job wants {wanted}")
        return f"{found} GPUs, a job takes {wanted}"
    raise Unavailable(f"neither nvidia-smi nor rocm-smi is here, and a job wants {wanted} GPUs")


def _allocation(config: SiteConfig) -> Check:
    granted = config.granted
    assert granted is not None

    def look() -> str:
        spending = Spending(config)
        if over := closing(granted, spending.gpu_hours * 3600.0, time.time()):
            raise Unavailable(over)
        left = granted.gpu_hours - spending.gpu_hours
        words = f"{granted.name}: {left:.4g} of {granted.gpu_hours:.4g} GPU-hours are left"
        if granted.until is not None:
            words += f", for {(granted.until - time.time()) / 86_400:.0f} days"
        return words

    found = check("allocation", look, "ask for more, write it under `allocation`; until then nothing starts")
    left = granted.gpu_hours - Spending(config).gpu_hours if found.is_good else 0.0
    if found.is_good and left < _LEFT_SHARE_MIN * granted.gpu_hours:
        return warning("allocation", found.detail, "ask for more in time")
    return found


def _text(text: Text) -> str:
    files = files_of(text)
    size = sum(path.stat().st_size for path, _ in files)
    return f"{text.access}: {len(files)} file{'' if len(files) == 1 else 's'}, {size / 1e6:.1f} MB"


def _manifest(config: SiteConfig) -> Iterator[Check]:
    """What `data prepare` wrote, against the files, by sizes and times; `data verify` reads the bytes."""
    from site_agent.data.manifest import manifest_path
    from site_agent.data.verifying import verify

    if not config.text or not manifest_path(config).exists():
        return
    for one in verify(config, digests=False):
        yield Check(
            name=f"data {one.name}",
            is_good=one.is_good,
            detail=one.detail,
            way_out=one.way_out,
            exit_code=one.exit_code,
        )


def _agent(status: SiteStatus, is_clock_known: bool) -> Iterator[Check]:
    agent = status.agent
    if agent is None:
        yield Check(name="agent", is_good=True, detail="has never synced here")
    else:
        since = "never" if agent.synced_at is None else f"{time.time() - agent.synced_at:.0f} s ago"
        runs = {True: "runs", False: "does not run", None: f"was started on {agent.host}"}[agent.is_running]
        mode = f"; mode {status.mode.mode}" if status.mode.mode != "work" else ""
        is_gone = not agent.stopped and not agent.is_at_work(time.time())
        detail = f"{runs}; last Sync {since}{mode}" + (f"; {agent.trouble}" if agent.trouble else "")
        if is_gone:
            detail += "; nobody stopped it, and it is gone"
        way_out = (
            f"see the logs of {agent.host}, then start it again; `sprachbund site service` keeps it going"
        )
        yield Check(
            name="agent",
            is_good=not agent.trouble,
            is_warning=is_gone and not agent.trouble,
            detail=detail,
            way_out=way_out if is_gone else "the message says it" if agent.trouble else "",
            exit_code=Unavailable.exit_code if agent.trouble else 0,
        )
        if not is_clock_known and agent.synced_at is not None:
            yield clock(agent.clock_ahead_seconds, f"at the last Sync, {since}")
    yield Check(
        name="spool",
        is_good=not status.broken,
        detail=f"{len(status.attempts)} attempts"
        + (f"; broken: {', '.join(status.broken)}" if status.broken else ""),
        way_out="look at them in spool/broken, then delete them",
        exit_code=Unavailable.exit_code if status.broken else 0,
    )
