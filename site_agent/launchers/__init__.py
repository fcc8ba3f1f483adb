"""Which launcher a site uses. A new one: a module here that keeps the promises of ``base``, a line below."""

import os
import sys

from site_agent.config import SiteConfig
from site_agent.description import prepared_text
from site_agent.launchers.base import Launcher
from site_agent.launchers.local import LocalLauncher
from site_agent.launchers.slurm.commands import LocalCommands, LocalFiles
from site_agent.launchers.slurm.launcher import SlurmLauncher
from site_agent.launchers.slurm.request import trainer_command


def make_launcher(config: SiteConfig) -> Launcher:
    match config.launcher:
        case "local":
            return LocalLauncher(threads=config.torch_threads)
        case "slurm":
            return slurm_launcher(config)


def slurm_launcher(config: SiteConfig) -> SlurmLauncher:
    """Of a config whose launcher is ``slurm``; the config is refused without a profile when it is loaded."""
    assert config.slurm is not None, config.site
    return SlurmLauncher(
        config.slurm,
        LocalCommands(),
        LocalFiles(),
        trainer_command(config.slurm, sys.executable),
        threads=config.torch_threads,
        python_path="" if config.slurm.python else os.environ.get("PYTHONPATH", ""),
        binds=(str(prepared_text(config)), *(f"{path}:{path}:ro" for path in _text_paths(config))),
    )


def _text_paths(config: SiteConfig) -> list[str]:
    return sorted({text.path for text in config.text})
