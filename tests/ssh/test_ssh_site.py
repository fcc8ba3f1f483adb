"""What an agent outside does at its site besides Slurm: its text is described there, and the doctor looks there."""

import os
import re
import shutil
import sys
from pathlib import Path

import msgspec
import pytest
import trainer_samples

from consortium.canonical import replace
from consortium.errors import BadInput, Refused, Unavailable
from consortium.models import initialise
from consortium.tensors import TensorFile
from policies.site_profile import SiteProfile
from site_agent.config import SiteConfig, Text, load_site_config
from site_agent.description import SPLIT_SEED, Description, prepared_text
from site_agent.doctor import doctor
from site_agent.holdings import describe
from site_agent.launching import make_launcher
from site_agent.record import checkpoint_of
from site_agent.ssh import checks
from site_agent.ssh.checks import ssh_checks
from site_agent.ssh.remote import RemoteSite, remote_site
from site_agent.ssh.settings import Ssh
from site_agent.trainer.bpe import train_bpe
from site_agent.transfers import Died


@pytest.fixture
def config(site, tmp_path, monkeypatch):
    monkeypatch.setattr("site_agent.ssh.master._socket_folder", lambda: site.sockets)
    text = tmp_path / "texts of the site" / "finnish.txt"
    text.parent.mkdir()
    text.write_text("\n\n".join(f"Lause numero {number}." for number in range(40)))
    home = tmp_path / "home"
    home.mkdir()
    config = SiteConfig(
        site="north",
        coordinator="127.0.0.1:1",
        enrolment="127.0.0.1:1",
        home=str(home),
        launcher="slurm",
        slurm=SiteProfile(),
        ssh=replace(site.settings, python=sys.executable),
        text=(Text(language="fin_Latn", path=str(text), access="private", licence="CC0-1.0"),),
    )
    yield config
    remote_site(config).connection.close()


def by_name(config):
    return {check.name: check for check in ssh_checks(config)}


def test_the_text_is_described_at_the_site_and_only_the_manifest_comes_back(config, site):
    description = Description(config)
    assert description.refresh()
    expected = describe(
        config.site, config.text, config.heldout_share, SPLIT_SEED, Path(config.home) / "other"
    )
    assert description.manifest == expected
    assert sum(holding.documents for holding in expected.holdings) == 40
    assert (site.root / "text" / "surveys").is_dir() and not (Path(config.home) / "text").exists()
    assert not description.refresh()
    assert prepared_text(config) == site.root / "text"


def test_text_that_cannot_be_read_is_said_with_the_sites_words(config):
    missing = replace(config, text=(replace(config.text[0], path="/not/there"),))
    with pytest.raises(BadInput, match="/not/there"):
        remote_site(config).describe(missing)


def test_no_partial_result_without_a_training_checkpoint(config, site):
    directory = Path(config.home) / "spool" / "0123-jobs" / "0123-jobs.a1"
    directory.mkdir(parents=True)
    (site.root / "jobs" / "0123-jobs" / "0123-jobs.a1").mkdir(parents=True)
    with pytest.raises((BadInput, Unavailable), match="no partial result"):
        remote_site(config).salvage(directory)


@pytest.mark.slow
def test_a_partial_result_is_made_there_and_comes_here(config, site, tmp_path):
    """A real trainer at the site, stopped with a training checkpoint; its inputs went there as they do."""
    texts = [
        text for language in trainer_samples.ALPHABETS for text in trainer_samples.sentences(language, 50)
    ]
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(train_bpe(texts, 320), encoding="utf-8")
    initialise(trainer_samples.CONFIG, 3, tokenizer, tmp_path / "base")
    work = trainer_samples.train_work(steps=6, checkpoint_steps=2)
    directory = Path(config.home) / "spool" / "t-r1-train-sofia" / "t-r1-train-sofia.a1"
    texts_there = trainer_samples.make_site(tmp_path / "texts")
    earlier = trainer_samples.make_job(tmp_path / "earlier", texts_there, work, tmp_path / "base")
    assert trainer_samples.run(earlier) == 0  # now the text is prepared
    trainer_samples.make_job(directory, texts_there, work, tmp_path / "base")
    remote = remote_site(config)
    remote.files._wait_seconds = 300.0  # for what it carries, however slow the machine is
    (directory / "base").unlink()
    shutil.copytree(tmp_path / "base", directory / "base")
    remote.files.push(directory)
    there = Path(remote.files.place(directory))
    (there / "STOP").touch()
    assert trainer_samples.run(there) == 75
    remote.files.pull([directory])
    assert checkpoint_of(directory) == (1, True)
    assert not (directory / "result").exists()
    remote.salvage(directory)
    made = trainer_samples.contribution(directory)
    assert (made.steps, made.planned_steps) == (1, 6)
    with TensorFile(directory / "result" / "delta.safetensors") as delta:
        assert any(delta.array(name).any() for name in delta)


def test_a_partial_result_whose_process_is_killed_there(config, site, tmp_path):
    directory = Path(config.home) / "spool" / "0123-jobs" / "0123-jobs.a1"
    directory.mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -KILL $$\n")
    python.chmod(0o755)
    there = replace(config, ssh=replace(config.ssh, python=str(python)))
    try:
        with pytest.raises(Died, match="Killed"):
            remote_site(there).salvage(directory)
    finally:
        remote_site(there).connection.close()


def test_the_launcher_of_such_a_config_speaks_over_ssh(config, site):
    launcher = make_launcher(config)
    directory = Path(config.home) / "spool" / "a" / "b"
    assert launcher.request(directory, 1).place == f"{site.root}/jobs/a/b"
    assert launcher.request(directory, 1).command[0] == sys.executable


def test_a_whole_site_is_found_good(config, monkeypatch):
    monkeypatch.setattr(checks, "_FREE_BYTES_MIN", 1)
    found = by_name(config)
    assert list(found) == ["ssh", "ssh root", "ssh tools", "ssh python", "ssh clock", "ssh text", "ssh slurm"]
    assert "answers as" in found["ssh"].look()
    for name in ("ssh root", "ssh tools", "ssh python", "ssh clock", "ssh text"):
        assert found[name].look()


def test_slurm_is_looked_for(config, tmp_path):
    tools = tmp_path / "slurm"
    tools.mkdir()
    (tools / "sbatch").write_text("#!/bin/sh\necho slurm 24.05.8\n")
    (tools / "sbatch").chmod(0o755)
    with_path = replace(config, ssh=replace(config.ssh, path=(str(tools),)))
    try:
        assert by_name(with_path)["ssh slurm"].look() == "slurm 24.05.8"
    finally:
        remote_site(with_path).connection.close()


def test_what_is_wrong_at_the_site_is_said(config, monkeypatch):
    found = by_name(replace(config, text=(replace(config.text[0], path="/not/there"),)))
    with pytest.raises(Unavailable, match="/not/there"):
        found["ssh text"].look()
    monkeypatch.setattr(checks, "_CLOCK_SECONDS_MAX", -1.0)
    with pytest.raises(Unavailable, match="ahead of this one"):
        found["ssh clock"].look()
    monkeypatch.setattr(checks, "_FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(Unavailable, match="GB are free"):
        found["ssh root"].look()
    monkeypatch.setattr(checks, "_TOOLS", ("cat", "no-such-tool"))
    with pytest.raises(Unavailable, match="not there: no-such-tool"):
        found["ssh tools"].look()
    monkeypatch.setattr(checks, "version", lambda name: "99.0")
    with pytest.raises(Unavailable, match=r"99\.0 here"):
        found["ssh python"].look()


def test_a_root_that_cannot_be_made_is_said(config):
    blocked = replace(config, ssh=replace(config.ssh, root="/dev/null/root"))
    try:
        with pytest.raises(Unavailable, match="/dev/null"):
            by_name(blocked)["ssh root"].look()
    finally:
        remote_site(blocked).connection.close()


def test_an_unknown_host_is_refused_and_a_person_is_not_kept_waiting(config, site):
    site.know("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
    look = by_name(config)["ssh"].look
    for _ in range(2):
        with pytest.raises(Refused, match="fingerprint"):
            look()
    site.know(site.sshd.host_key)
    assert "answers" in look()


WRITTEN = """
site: north
coordinator: coordinator.example.eu:7443
enrolment: coordinator.example.eu:7444
home: home
launcher: slurm
slurm: generic
ssh: {{host: login1, root: /gpfs/projects/x, identity_file: keys/id, config_file: /etc/none{more}}}
text:
  - {{language: fin_Latn, path: {path}, access: private, licence: CC0-1.0}}
"""


def test_paths_of_the_config_are_of_the_side_they_belong_to(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(WRITTEN.format(more="", path="/gpfs/text"))
    config = load_site_config(path)
    assert config.ssh.identity_file == os.path.join(tmp_path, "keys/id")
    assert config.text[0].path == "/gpfs/text"
    path.write_text(WRITTEN.format(more="", path="text"))
    with pytest.raises(BadInput, match="absolute path of the site"):
        load_site_config(path)


@pytest.mark.parametrize(
    "more",
    [
        ", user: -oProxyCommand=x",
        ", jump: -oProxyCommand=x",
        ", transfer_host: -x",
        ", port: 0",
        ", path: [a:b]",
    ],
)
def test_nothing_in_the_config_can_become_an_option_of_ssh(tmp_path, more):
    path = tmp_path / "site.yaml"
    path.write_text(WRITTEN.format(more=more, path="/gpfs/text"))
    with pytest.raises(BadInput, match="ssh"):
        load_site_config(path)


def test_ssh_without_slurm_is_refused(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(WRITTEN.format(more="", path="/gpfs/text").replace("launcher: slurm", "launcher: local"))
    with pytest.raises(BadInput, match="launcher: slurm"):
        load_site_config(path)


def test_one_site_is_one_object_for_the_process(config):
    assert remote_site(config) is remote_site(replace(config, slots=3))
    assert remote_site(replace(config, ssh=None)) is None
    assert isinstance(remote_site(config), RemoteSite)


def test_the_doctor_asks_the_site(config, monkeypatch):
    monkeypatch.setattr(checks, "_FREE_BYTES_MIN", 1)
    found = {check.name: check for check in doctor(config)}
    assert found["ssh"].is_good and found["ssh python"].is_good
    assert not found["ssh slurm"].is_good and "`path`" in found["ssh slurm"].way_out
    assert "software" not in found and "text fin_Latn" not in found  # they are the site's


def test_a_site_that_cannot_be_reached_is_one_finding(config, site):
    site.wire.close()
    found = [check for check in doctor(config) if check.name.startswith("ssh")]
    assert [check.name for check in found] == ["ssh"]
    assert not found[0].is_good and found[0].exit_code == Unavailable.exit_code


def test_every_key_is_explained():
    text = (Path(__file__).parents[2] / "docs" / "ssh.md").read_text(encoding="utf-8")
    said = re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
    assert said == [
        field.name for field in sorted(msgspec.structs.fields(Ssh), key=lambda f: said.index(f.name))
    ]
