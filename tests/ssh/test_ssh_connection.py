"""One connection to a site: what is run arrives as it is, and whatever breaks is said and healed."""

import os
import signal
import subprocess
import time
from types import SimpleNamespace

import pytest
from loopback_sshd import key_pair

from consortium.errors import BadInput, Refused, Unavailable
from site_agent.ssh.commands import SshCommands
from site_agent.ssh.connection import Connection
from site_agent.ssh.session import write_all
from site_agent.ssh.trouble import Kind, Trouble, trouble_of, wait_seconds

ODD = [
    "",
    " ",
    "a b",
    "it's",
    '"double"',
    "$HOME `id` $(id)",
    "back\\slash\\",
    "new\nline",
    "tab\t",
    "!history",
    "*",
    "~",
    "--",
    "-n",
    "%A|%T|%r",
    "ünïcödé ελ",
    ";exit 3",
    "&",
    "#no comment",
    "\x01\x7f",
]


@pytest.fixture
def commands(site):
    return SshCommands(site.connect())


def test_arguments_arrive_as_they_are(commands):
    done = commands.run(["printf", "[%s]\n", *ODD])
    assert (done.rc, done.err) == (0, "")
    assert done.out == "".join(f"[{argument}]\n" for argument in ODD)


def test_an_argument_with_a_nul_is_refused(commands):
    with pytest.raises(BadInput, match="NUL"):
        commands.run(["echo", "a\0b"])


def test_streams_and_the_exit_code_come_back_apart(commands):
    done = commands.run(["sh", "-c", "cat; echo wrong >&2; exit 255"], stdin=b"in\0\xff\n")
    assert (done.rc, done.out, done.err) == (255, "in\0\ufffd\n", "wrong\n")


def test_large_input_and_output_pass(site):
    data = os.urandom(1 << 20) * 8
    assert site.connect().run("cat", stdin=data).out == data


def test_the_environment_is_slurms_and_nothing_of_ours(commands, monkeypatch):
    monkeypatch.setenv("SITE_TOKEN", "secret")
    monkeypatch.setenv("LC_SECRET", "secret")
    words = commands.run(["env"]).out
    assert "secret" not in words and "SSH_AUTH_SOCK" not in words
    assert "LC_ALL=C\n" in words and "SLURM_TIME_FORMAT=%s\n" in words


def test_the_path_setting_finds_what_a_plain_shell_does_not(site, tmp_path):
    tools = tmp_path / "opt slurm"
    tools.mkdir()
    (tools / "mysbatch").write_text("#!/bin/sh\necho here\n")
    (tools / "mysbatch").chmod(0o755)
    with pytest.raises(Unavailable, match="`path`"):
        SshCommands(site.connect()).run(["mysbatch"])
    assert SshCommands(site.connect(), [str(tools)]).run(["mysbatch"]).out == "here\n"


def test_many_commands_share_one_login(site, commands):
    for _ in range(5):
        commands.run(["true"])
    SshCommands(site.connect()).run(["true"])  # another process
    assert site.wire.dialled == 1


def test_what_start_up_files_print_is_no_part_of_the_answer(own_site):
    own_site.sshd.stop()
    own_site.sshd.more = 'ForceCommand echo noise; echo noise >&2; eval "$SSH_ORIGINAL_COMMAND"'
    own_site.sshd.start()
    done = SshCommands(own_site.connect()).run(["echo", "said"])
    assert (done.rc, done.out, done.err) == (0, "said\n", "")


def test_a_killed_master_is_made_again(site, commands):
    commands.run(["true"])
    os.kill(master_of(site), signal.SIGKILL)
    assert commands.run(["echo", "again"]).out == "again\n"
    assert site.wire.dialled == 2


def test_a_socket_without_a_master_is_healed(site, commands):
    commands.run(["true"])
    socket = site.connect().socket
    os.kill(master_of(site), signal.SIGKILL)
    until(lambda: site.connect()._master._answers() is False)
    assert socket.exists()  # a killed master leaves it behind
    assert commands.run(["echo", "again"]).out == "again\n"


def test_a_broken_line_is_unavailable_and_the_next_command_goes_through(site, commands):
    commands.run(["true"])
    site.wire.cut_after("down", 3000)
    with pytest.raises(Unavailable, match="not known"):
        commands.run(["sh", "-c", "echo begun; head -c 100000 /dev/zero; sleep 9"])
    assert commands.run(["echo", "again"]).out == "again\n"


def test_a_session_that_finds_no_master_never_dials(site, commands):
    """Else a lost master would turn every command into a login, and a site's guard into a ban."""
    connection = site.connect()
    connection.open = lambda patient=True: None
    with pytest.raises(Unavailable):
        connection.run("echo")
    assert site.wire.dialled == 0


def test_a_frozen_line_is_given_up_after_the_timeout_and_left_behind(site, commands, monkeypatch):
    commands.run(["true"])
    old = master_of(site)
    site.wire.freeze()
    with monkeypatch.context() as patch:
        patch.setattr("site_agent.ssh.connection.CHECK_SECONDS", 3.0)
        with pytest.raises(Unavailable, match="no answer within"):
            commands.run(["true"], timeout=3.0)
    site.wire.cut()
    site.wire.thaw()
    assert commands.run(["echo", "again"]).out == "again\n"
    assert master_of(site) != old


def test_a_changed_host_key_is_refused_with_the_way_out(own_site):
    commands = SshCommands(own_site.connect())
    key_pair(own_site.sshd.folder / "other")
    own_site.know(" ".join((own_site.sshd.folder / "other.pub").read_text().split()[:2]))
    with pytest.raises(Unavailable, match="not the one that is known") as caught:
        commands.run(["true"])
    assert "fingerprint" in str(caught.value) and "known hosts" in str(caught.value)
    assert own_site.connect().trouble().kind is Kind.HOST_KEY
    own_site.know(own_site.sshd.host_key)
    own_site.connect().open(patient=False)  # as the doctor does
    assert commands.run(["echo", "in"]).out == "in\n"


def test_an_unknown_host_key_is_not_learnt(own_site):
    own_site.known_hosts.write_text("")
    with pytest.raises(Unavailable, match="not known here"):
        SshCommands(own_site.connect()).run(["true"])
    assert own_site.known_hosts.read_text() == ""


def test_a_refused_key_waits_before_the_next_login(own_site):
    (own_site.sshd.folder / "authorized").write_text("")
    now = [1000.0]
    connection = own_site.connect(clock=lambda: now[0])
    with pytest.raises(Unavailable, match="public key") as caught:
        connection.run("true")
    assert "BatchMode=no" in str(caught.value)  # what to type where a second factor is asked for
    dialled = own_site.wire.dialled
    for _ in range(3):  # no site bans us
        with pytest.raises(Unavailable, match="the next is in 600 s"):
            own_site.connect(clock=lambda: now[0]).run("true")
    assert own_site.wire.dialled == dialled
    now[0] += 601
    with pytest.raises(Unavailable, match="public key"):
        connection.run("true")
    assert connection.trouble().failures == 2
    (own_site.sshd.folder / "authorized").write_bytes((own_site.sshd.folder / "user.pub").read_bytes())
    now[0] += 1201
    assert connection.run("echo in").out == b"in\n"
    assert connection.trouble() is None


def test_a_server_that_is_down_is_unavailable(own_site):
    own_site.sshd.stop()
    own_site.wire.close()
    with pytest.raises(Unavailable, match="refused"):
        SshCommands(own_site.connect()).run(["true"])


def test_a_login_by_hand_is_used(own_site):
    """Where a site asks for a second factor, a person logs in, and the agent goes on over that."""
    connection = own_site.connect()
    subprocess.run(connection.command_by_hand(), shell=True, check=True, stderr=subprocess.DEVNULL)
    (own_site.sshd.folder / "authorized").write_text("")  # nobody else gets in
    assert connection.run("echo in").out == b"in\n"
    assert own_site.wire.dialled == 1


def test_when_all_sessions_are_taken_one_waits(own_site, monkeypatch):
    own_site.sshd.stop()
    own_site.sshd.more = "MaxSessions 1"
    own_site.sshd.start()
    connection = own_site.connect()
    with connection.session("echo begun; read line") as session:
        assert session.skip_to_output() and session.stdout.readline() == b"begun\n"

        def release(seconds):
            if session.stdin.closed:  # our end is over; sshd may take a moment more to notice
                return time.sleep(seconds)
            session.stdin.write(b"go\n")
            session.stdin.close()
            session.process.wait(timeout=120)

        monkeypatch.setattr("site_agent.ssh.connection.time", SimpleNamespace(sleep=release, time=time.time))
        monkeypatch.setattr("site_agent.ssh.connection._OPENINGS", 30)  # minutes, if sshd is as slow as that
        assert connection.run("echo second").out == b"second\n"


def test_a_folder_of_others_is_not_used_for_sockets(tmp_path, monkeypatch, site):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "sprachbund").mkdir(mode=0o777)
    (tmp_path / "sprachbund").chmod(0o777)
    with pytest.raises(Refused, match="0700"):
        Connection(site.settings)


def test_a_pipe_that_takes_a_part_gets_the_rest():
    """A SIGSTOP and SIGCONT in the midst of a write: what was left of it would be missing in the file for good."""

    class Sparing:
        def __init__(self):
            self.got = b""

        def write(self, data):
            self.got += bytes(data[:3])
            return len(data[:3])

    pipe = Sparing()
    write_all(pipe, b"0123456789")
    assert pipe.got == b"0123456789"


def test_waits_grow_and_end_at_an_hour():
    def waits(kind):
        return [
            wait_seconds(Trouble(kind=kind, sentence="", at=0.0, failures=count)) for count in (1, 2, 3, 40)
        ]

    assert waits(Kind.NETWORK) == [15, 30, 60, 3600]
    assert waits(Kind.LOGIN) == [600, 1200, 2400, 3600]


def test_an_ssh_that_says_nothing_is_still_a_sentence():
    assert trouble_of("host", 255, "", 0.0, 0).sentence == "host cannot be reached: ssh ended with 255"
    assert "too long" in trouble_of("host", -1, "", 0.0, 0).sentence


def master_of(site):
    socket = str(site.connect().socket)
    said = subprocess.run(
        ["ssh", "-F", "none", "-S", socket, "-O", "check", "x"], capture_output=True, text=True, check=True
    ).stderr
    return int(said.partition("pid=")[2].partition(")")[0])


def until(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
