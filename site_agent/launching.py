"""Which launcher a site uses. A new one: a module in ``launchers`` that keeps ``base``'s promises, a line below."""

import os
import sys

from site_agent.config import SiteConfig, prepared_text
from site_agent.launchers.base import Launcher
from site_agent.launchers.local import LocalLauncher, trainer_of
from site_agent.launchers.slurm.commands import LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.request import trainer_command
from site_agent.ssh.remote import remote_site


def make_launcher(config: SiteConfig) -> Launcher:
    match config.launcher:
        case "local":
            return LocalLauncher(
                trainer_of(config.ranks), threads=config.torch_threads, gpus=config.gpus_of_job
            )
        case "slurm":
            return slurm_launcher(config)


def slurm_launcher(config: SiteConfig) -> SlurmLauncher:
    """Of a config whose launcher is ``slurm``; the config is refused without a profile when it is loaded."""
    assert config.slurm is not None, config.site
    site = remote_site(config)
    return SlurmLauncher(
        config.slurm,
        site.commands if site else LocalCommands(),
        site.files if site else LocalFiles(),
        trainer_command(config.slurm, site.settings.python if site else sys.executable),
        threads=config.torch_threads,
        python_path="" if config.slurm.python or site else os.environ.get("PYTHONPATH", ""),
        binds=(str(prepared_text(config)), *(f"{path}:{path}:ro" for path in _text_paths(config))),
    )


def _text_paths(config: SiteConfig) -> list[str]:
    return sorted({text.path for text in config.text})
