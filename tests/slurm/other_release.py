"""Do the launcher's tests pass on the Slurm of another Debian release than this machine's?

    python tests/slurm/other_release.py trixie                        Slurm 24.11, the launcher's tests
    python tests/slurm/other_release.py trixie -- tests/slurm -k usage     what pytest is told instead

The release is unpacked into a folder by debootstrap, which needs root and Debian's mirror, a gigabyte and minutes; a
second call finds it there. The tests run in it with this interpreter and this repository, which are mounted there in
a mount namespace of the run's own: nothing stays mounted. Everything they make is below the folder.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurm-wlm-basic-plugins",
    "slurmdbd",
    "mariadb-server",
    "ca-certificates",
    "python3",  # brings the libraries that this interpreter wants, whatever the release calls them
)
TESTS = ("tests/slurm/test_contract_on_slurm.py", "tests/slurm/test_launcher_on_slurm.py")
REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = ("debootstrap", "unshare", "chroot", "mount")


def unpack(release: str, folder: Path, mirror: str) -> None:
    """The release with its Slurm in ``folder``; nothing if it is there."""
    done = folder / "etc" / "sprachbund-release"
    if done.exists():
        return
    argv = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(PACKAGES)}",
        release,
        str(folder),
        mirror,
    ]
    subprocess.run(argv, check=True)
    done.write_text(release + "\n")


def run_in(folder: Path, argv: list[str]) -> int:
    """A command in the release, in this repository; its exit code."""
    interpreter = Path(sys.base_prefix).resolve()
    places = dict.fromkeys(str(place) for place in (interpreter, Path(sys.prefix).resolve(), REPOSITORY))
    mounts = [("--rbind", place) for place in ("/proc", "/sys", "/dev")]
    mounts += [("--bind", place) for place in places]
    for _, place in mounts:
        (folder / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
    steps = [f'mount {how} "{place}" "{folder}{place}"' for how, place in mounts]
    # the first directory in which the command stands is its own, so that a relative path means the same
    steps.append(f'exec chroot "{folder}" /bin/sh -c \'cd "$0" && exec "$@"\' "$@"')
    environment = {
        **os.environ,
        "SLURM_TEST_ROOT": "/tmp/slurm-test",  # of the release: no cluster of this machine's is meant
        "SPRACHBUND_REQUIRE_SLURM": "1",
        "TMPDIR": "/tmp",
    }
    environment.pop("SLURM_CONF", None)
    script = " && ".join(steps)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", str(REPOSITORY)]
    return subprocess.run([*command, *argv], env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("release", help="Debian's name of it, such as trixie")
    parser.add_argument("--folder", type=Path, help="where it is unpacked, and kept")
    parser.add_argument("--mirror", default="http://deb.debian.org/debian", help="%(default)s")
    cut = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given = parser.parse_args(sys.argv[1:cut])
    if os.geteuid():
        parser.error("it needs root, for debootstrap, mount and slurmd")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        parser.error(f"not installed: {', '.join(missing)}")
    folder = given.folder or Path(tempfile.gettempdir()) / f"sprachbund-{given.release}"
    unpack(given.release, folder.absolute(), given.mirror)
    run_in(folder.absolute(), ["slurmctld", "-V"])
    pytest = [sys.executable, "-m", "pytest", "-m", "", "-p", "no:cacheprovider"]
    return run_in(folder.absolute(), [*pytest, *(sys.argv[cut + 1 :] or TESTS)])


if __name__ == "__main__":
    sys.exit(main())
