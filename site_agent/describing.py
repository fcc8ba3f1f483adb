"""The site's text is looked at in a process of its own: it may take hours and gigabytes, the agent neither.

    python -m site_agent.describing < config.json > manifest.json

Leaves with the exit code of the error and its sentence on stderr if the text cannot be described.
"""

import subprocess
import sys
from pathlib import Path

from consortium.canonical import decode, encode
from consortium.errors import BadInput, SprachbundError, Unavailable
from consortium.manifests import DataManifest
from site_agent.config import SiteConfig

_COMMAND = ("nice", "-n", "10", sys.executable, "-P", "-m", "site_agent.describing")
_SENTENCE_MAX = 2000


class Describing:
    """One look at the text, which ``stop`` ends."""

    def __init__(self, config: SiteConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._is_over = False

    def run(self) -> DataManifest:
        """Raises BadInput with the reason, or Unavailable if the process was ended."""
        try:
            with subprocess.Popen(
                _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            ) as process:
                self._process = process
                if self._is_over:
                    process.kill()
                out, err = process.communicate(encode(self._config))
        except OSError as error:
            raise Unavailable(f"no process can be started: {error.strerror}") from error
        if process.returncode == 0:
            return decode(out, DataManifest, "the manifest")
        words = err.decode(errors="replace").strip()[-_SENTENCE_MAX:]
        if process.returncode == BadInput.exit_code:
            raise BadInput(words)
        raise Unavailable(words or f"the process that looks at the text ended with {process.returncode}")

    def stop(self) -> None:
        self._is_over = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


def main() -> int:
    from site_agent.description import SPLIT_SEED, prepared_text
    from site_agent.holdings import describe

    config = decode(sys.stdin.buffer.read(), SiteConfig, "the site's config")
    try:
        found = describe(
            config.site, config.text, config.heldout_share, SPLIT_SEED, Path(prepared_text(config))
        )
    except SprachbundError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(error, file=sys.stderr)
        return Unavailable.exit_code
    sys.stdout.buffer.write(encode(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
