"""What the site says it holds: looked at when the agent starts, and again while files may change."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from consortium.canonical import decode, digest_of_fact, encode
from consortium.errors import BadInput, SprachbundError
from consortium.files import write_bytes_atomically
from consortium.manifests import DataManifest
from site_agent.config import SiteConfig
from site_agent.config import prepared_text as prepared_text
from site_agent.describing import Describing
from site_agent.ssh.remote import RemoteDescribing, remote_site
from site_agent.text import files_of

_log = logging.getLogger(__name__)

_REFRESH_SECONDS = 60.0  # unchanged files cost one stat each
_LOOK_SHARE = 0.01  # of its time, at most: a million files on a parallel file system take a minute to look at
SPLIT_SEED = 0  # of the counts told; each job names its own


class Description:
    """The newest manifest of the site's text, made in a thread: terabytes take hours to read the first time.

    manifest  what was told last, from disk at first; None while it has never been made
    """

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._path = Path(config.home) / "holdings.json"
        self._known = Path(config.home) / "holdings.state"  # what the files were like when it was made
        site = remote_site(config)
        self._describing = RemoteDescribing(config, site) if site else Describing(config)
        self._trouble = ""
        self._over = threading.Event()
        self.manifest: DataManifest | None = None
        with contextlib.suppress(FileNotFoundError, BadInput):
            self.manifest = decode(self._path.read_bytes(), DataManifest, str(self._path))

    def refresh(self) -> bool:
        """Look at the text; whether there was news. What cannot be read leaves the manifest as it was."""
        try:
            found = self._look()
        except (SprachbundError, OSError) as error:
            if str(error) != self._trouble:
                _log.error("the site's text cannot be described: %s", error)
            self._trouble = str(error)
            return False
        self._trouble = ""
        if found == self.manifest:
            return False
        self.manifest = found
        _log.info("the site holds text in %d languages", len({h.language for h in found.holdings}))
        return True

    def keep_fresh(self, changed: Callable[[], None]) -> None:
        """Go on refreshing in a thread of its own, which the end of the process does not wait for."""
        loop = asyncio.get_running_loop()

        def work() -> None:
            while not self._over.is_set():
                began = time.monotonic()
                if self.refresh() and not self._over.is_set():
                    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                        loop.call_soon_threadsafe(changed)
                self._over.wait(max(_REFRESH_SECONDS, (time.monotonic() - began) / _LOOK_SHARE))

        threading.Thread(target=work, name="description", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        self._describing.stop()

    def _look(self) -> DataManifest:
        config = self._config
        state = b"" if config.ssh else _state_of(config)  # the site remembers what its files were like
        if state and self.manifest is not None and state == self._state_then():
            return self.manifest
        found = self._describing.run() if config.text else DataManifest(site=config.site, holdings=())
        write_bytes_atomically(self._path, encode(found))
        write_bytes_atomically(self._known, state)
        return found

    def _state_then(self) -> bytes:
        try:
            return self._known.read_bytes()
        except OSError:
            return b""


def _state_of(config: SiteConfig) -> bytes:
    """A digest of everything the manifest depends on, by the files' sizes and times."""
    files = [
        (str(path), stat.st_size, stat.st_mtime_ns)
        for text in config.text
        for path, _ in files_of(text)
        for stat in [path.stat()]
    ]
    version = 1  # to be raised when the reading of text changes what is counted
    return digest_of_fact([version, config.site, config.text, config.heldout_share, files]).encode()
