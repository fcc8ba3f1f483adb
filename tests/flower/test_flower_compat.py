"""What we need of flwr that flwr does not promise: is it still there."""

import subprocess
import sys

import pytest

from consortium.errors import BadInput
from consortium.flower import compat


def test_the_installed_flwr_has_all_that_is_needed() -> None:
    """Each line of a failure is a sentence: what changed, and which file to change."""
    assert "\n".join(compat.broken()) == ""


@pytest.mark.parametrize("release", ["1.40.9", "1.42.0", "2.1.41"])
def test_another_release_is_refused_with_the_command_that_helps(release: str) -> None:
    with pytest.raises(
        BadInput, match=rf"flwr {release} is installed, .* 1\.41: `pip install 'flwr>=1.41,<1.42'`"
    ):
        compat.check_release(release)


def test_no_flwr_at_all_is_told_with_the_extra_to_install() -> None:
    with pytest.raises(BadInput, match=r"pip install 'sprachbund\[flower\]'"):
        compat.check_release(None)


def test_a_changed_flwr_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract test can fail: with a symbol gone, and with one method more to be answered."""
    monkeypatch.delattr("flwr.supercore.run.Run.create_empty")
    monkeypatch.setattr(compat.Grid, "__abstractmethods__", compat._GRID | {"stream_messages"})
    said = list(compat.broken())
    assert (
        "flwr.supercore.run.Run no longer has create_empty; change what uses it in consortium/flower/compat.py"
        in said
    )
    assert "flwr's Grid asks for other methods than before (stream_messages); change JobGrid" in said


def test_the_programs_start_without_flwr_and_telemetry_is_off_before_it_comes() -> None:
    program = """
import sys, os
import console.main, coordinator.daemon, site_agent.agent, site_agent.trainer.__main__
assert not [name for name in sys.modules if name.split(".")[0] in ("flwr", "ray")], "flwr at start"
os.environ["FLWR_TELEMETRY_ENABLED"] = "1"
from consortium.flower import compat
from flwr.supercore.telemetry import FLWR_TELEMETRY_ENABLED
assert FLWR_TELEMETRY_ENABLED == "0" and os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
assert not [name for name in sys.modules if name.split(".")[0] in ("torch", "ray")], "a heavy import"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
