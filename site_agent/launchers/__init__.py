"""Which launcher a site uses. A new one: a module here that keeps the promises of ``base``, a line below."""

from consortium.errors import Refused
from site_agent.config import SiteConfig
from site_agent.launchers.base import Launcher
from site_agent.launchers.local import LocalLauncher


def make_launcher(config: SiteConfig) -> Launcher:
    match config.launcher:
        case "local":
            return LocalLauncher(threads=config.torch_threads)
        case "slurm":
            raise Refused("this version cannot launch through Slurm yet; set `launcher: local`")
