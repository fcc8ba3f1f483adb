"""What is handed to sbatch: the options of a profile, what others can see, and scripts that bash accepts."""

import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consortium.canonical import replace
from consortium.errors import BadInput, Refused
from policies.site_profile import Container, SiteProfile, load_profile, profile_names
from site_agent.config import load_site_config
from site_agent.launchers.slurm.commands import LocalCommands
from site_agent.launchers.slurm.request import Request, batch_script, job_name, sbatch_line
from site_agent.rendering import render

REQUEST = Request(
    place="/site/spool/nordic_r1-fi/nordic_r1-fi.a1", life=2, command=("python", "-m", "site_agent.trainer")
)
GPUS = SiteProfile(gpus_per_node=4, gpu_type="cuda", nodes=2)


def options(request, profile):
    return sbatch_line(request, profile)[1:-1]


def assert_bash_accepts(script):
    checked = subprocess.run(["bash", "-n"], input=script.encode(), capture_output=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_the_name_says_nothing_of_campaign_language_or_attempt():
    name = job_name(REQUEST.place, 2)
    assert not any(word in name for word in ("nordic", "fi.", "a1"))
    assert name.endswith("-2")
    assert len({job_name(REQUEST.place, 1), name, job_name(f"{REQUEST.place}2", 2)}) == 3


def test_every_key_of_a_profile_becomes_its_option():
    profile = SiteProfile(
        partition="gpu",
        account="project_1",
        qos="long",
        reservation="ours",
        constraint="a100&nvme",
        cpus_per_task=8,
        memory="64G",
        walltime_minutes=90,
        signal_seconds=200,
        requeue=False,
        sbatch_extra=("--exclusive", "--switches=1"),
    )
    given = options(REQUEST, profile)
    assert {
        *(
            "--partition=gpu",
            "--account=project_1",
            "--qos=long",
            "--reservation=ours",
            "--constraint=a100&nvme",
        ),
        *(
            "--cpus-per-task=8",
            "--mem=64G",
            "--time=90",
            "--signal=B:USR1@200",
            "--no-requeue",
            "--exclusive",
        ),
        *("--switches=1", "--export=NONE", "--open-mode=append", "--parsable", "--nodes=1"),
    } <= set(given)
    assert "--requeue" not in given
    assert not any(option.startswith("--gpus") or option.startswith("--gres") for option in given)
    assert not any(option.startswith("--comment") for option in given)


@pytest.mark.parametrize(
    ("flag", "model", "option"),
    [
        ("gpus-per-node", "", "--gpus-per-node=4"),
        ("gpus-per-node", "a100", "--gpus-per-node=a100:4"),
        ("gres", "", "--gres=gpu:4"),
        ("gres", "a100", "--gres=gpu:a100:4"),
        ("gpus", "", "--gpus=8"),
        ("gpus", "h100", "--gpus=h100:8"),
    ],
)
def test_gpus_are_asked_for_as_the_site_wants_it(flag, model, option):
    assert option in options(REQUEST, replace(GPUS, gpu_flag=flag, gpu_model=model))


def test_merges_and_tokenizers_get_one_node_and_one_process():
    single = replace(REQUEST, is_single=True)
    assert "--nodes=1" in options(single, GPUS)
    assert "torch.distributed" not in batch_script(single, GPUS)
    assert "--nproc-per-node=4" in batch_script(REQUEST, GPUS)
    assert "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1" in batch_script(REQUEST, GPUS)


def test_a_percent_sign_in_the_path_is_none_of_slurms():
    assert "--output=/site/50%%j/log.2.txt" in options(replace(REQUEST, place="/site/50%j"), SiteProfile())


@pytest.mark.parametrize("name", profile_names())
def test_every_preset_makes_a_script_that_bash_accepts(name):
    assert_bash_accepts(batch_script(REQUEST, load_profile(name)))


@given(
    st.text(st.characters(blacklist_characters="\0\n", blacklist_categories=["Cs"]), min_size=1, max_size=20),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), max_size=20),
)
def test_no_path_and_no_value_breaks_out_of_its_quotes(word, value):
    request = replace(REQUEST, place=f"/site/{word}", command=(word, value), binds=(word,))
    profile = SiteProfile(
        environment={"VALUE": value},
        container=Container(image=word, flags=(value,)),
        modules=(word,),
        nodes=2,
    )
    script = batch_script(request, profile)
    checked = subprocess.run(
        [
            "bash",
            "-c",
            f"{script.splitlines()[0]}\n" + "\n".join(_assignments(script)) + '\nprintf %s "$VALUE"',
        ],
        capture_output=True,
        check=True,
    )
    assert checked.stdout == value.encode()
    assert_bash_accepts(script)


def _assignments(script):
    start = script.index("export VALUE=")
    return [script[start : script.index("\n# Modules and lines")]]


# ---- profiles in a site's config

SITE = """\
site: north
coordinator: 127.0.0.1:7443
enrolment: 127.0.0.1:7444
home: home
launcher: slurm
"""


def test_a_preset_with_keys_changed(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(SITE + "slurm: {preset: lumi, account: project_1, nodes: 3}\n")
    profile = load_site_config(path).slurm
    assert profile == replace(load_profile("lumi"), account="project_1", nodes=3)
    path.write_text(SITE + "slurm: generic\n")
    assert load_site_config(path).slurm == load_profile("generic")


@pytest.mark.parametrize(
    ("slurm", "line", "words"),
    [
        ("slurm: lummi", 6, "did you mean 'lumi'"),
        ("slurm: {preset: lummi}", 6, "did you mean 'lumi'"),
        ("slurm:\n  preset: generic\n  acount: x", 8, "did you mean 'account'"),
        ("slurm:\n  walltime_minutes: 5", 6, "signal_seconds"),
        ("slurm:\n  walltime_minutes: 90\n  walltime_minutes_max: 60", 7, "above this site's 60"),
        ("slurm:\n  gpus_per_node: 4", 6, "gpu_type"),
        ("slurm:\n  account: a b", 7, "without blanks"),
        ("slurm:\n  sbatch_extra: [--exclusive, --requeue]", 7, "set by the launcher"),
        ("slurm:\n  sbatch_extra: [-Jname]", 7, "set by the launcher"),
        ("slurm:\n  sbatch_extra: [exclusive]", 7, "no option of sbatch"),
        ("slurm:\n  environment: {A-B: x}", 7, "no name of a variable"),
        ("slurm:\n  unverified: [colour]", 7, "no key of a profile"),
        ("slots: 2", 5, "slurm needs a profile"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told_with_its_line(tmp_path, slurm, line, words):
    path = tmp_path / "site.yaml"
    path.write_text(f"{SITE}{slurm}\n")
    with pytest.raises(BadInput) as caught:
        load_site_config(path)
    assert words in str(caught.value)
    assert f"site.yaml:{line}: " in str(caught.value)


# ---- rendering


def test_what_is_rendered_is_what_would_be_submitted(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(SITE + "slurm: {preset: generic, account: project_1, unverified: [account]}\n")
    found = render(load_site_config(path))
    assert found.command[0] == "sbatch"
    assert found.directory == str(tmp_path / "home/spool/example_r1-xx/example_r1-xx.a1")
    assert found.command[-1] == f"{found.directory}/batch.1.sh"
    assert found.script.startswith("#!/bin/bash\n")
    assert shlex.quote(sys.executable) in found.script
    assert found.unverified == ("account",)
    assert not (tmp_path / "home").exists()
    with pytest.raises(BadInput, match="neither a file nor an attempt"):
        render(load_site_config(path), "nosuch")


def test_a_site_that_launches_locally_has_nothing_to_render(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(SITE.replace("launcher: slurm", "launcher: local"))
    with pytest.raises(Refused, match="launcher: slurm"):
        render(load_site_config(path))


# ---- commands


def test_what_steers_slurm_in_the_agents_environment_steers_no_answer():
    """An agent in a Slurm job of its own, and somebody's SQUEUE_STATES in a login shell."""
    environment = {"PATH": "/usr/bin:/bin", "SLURM_CONF": "/etc/slurm.conf", "SLURM_RESTART_COUNT": "3"}
    environment |= {"SQUEUE_STATES": "PENDING", "SBATCH_ACCOUNT": "other", "SLURM_JOB_ID": "1"}
    said = LocalCommands(environment).run(["env"])
    names = {line.partition("=")[0] for line in said.out.splitlines()}
    assert {"PATH", "SLURM_CONF", "LC_ALL", "SLURM_TIME_FORMAT"} <= names
    assert not names & {"SLURM_RESTART_COUNT", "SQUEUE_STATES", "SBATCH_ACCOUNT", "SLURM_JOB_ID"}


def test_a_command_that_is_not_there_ends_as_in_a_shell():
    said = LocalCommands({"PATH": "/nowhere"}).run(["sbatch"])
    assert said.rc == 127
    assert "installed" in said.err
