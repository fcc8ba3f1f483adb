"""The systemd user unit of a site's agent, filled in for one config and one interpreter. Pure.

Source: systemd.service(5), systemd.exec(5). Only what a user's own manager can do is used: what needs mount
namespaces (``ProtectSystem=`` and its like) is left out.
"""

from collections.abc import Mapping, Sequence

from consortium.errors import BadInput

# consortium/errors.py: starting again cannot help, and after 8 two agents would replace each other for ever
_ENDS_FOR_GOOD = "2 3 4 7 8"
_NICE = 10

_UNIT = """\
# The agent of site @SITE@, as a unit of your own systemd. Put it in place and start it:
#   mkdir -p ~/.config/systemd/user && sprachbund site service @CONFIG@ > ~/.config/systemd/user/@NAME@
#   systemctl --user daemon-reload && systemctl --user enable --now @NAME@
#   loginctl enable-linger    (once: it then runs while you are logged out, where the site allows that)
[Unit]
Description=Sprachbund agent of site @SITE@

[Service]
Type=notify
NotifyAccess=main
ExecStart=@COMMAND@
WorkingDirectory=@FOLDER@
@ENVIRONMENT@# It says that its loop turns; one that hangs, say on a file system, is started again. Jobs never notice.
WatchdogSec=10min
Restart=on-failure
RestartSec=30s
RestartPreventExitStatus=@ENDS@
TimeoutStartSec=5min
TimeoutStopSec=1min
# Jobs of the local launcher outlive the agent, and one that runs out of memory does not take it along.
KillMode=process
OOMPolicy=continue
@NICE@
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
UMask=0077

[Install]
WantedBy=default.target
"""
_NICE_LINES = f"""\
# It only talks, copies and asks Slurm: everybody else on this host comes first.
Nice={_NICE}
IOSchedulingClass=idle
RestrictNamespaces=yes"""
_NICE_LOCAL = "# Jobs run below this unit and would inherit a lower priority; add Nice= if you want that."


def unit_name(site: str) -> str:
    return f"sprachbund-agent-{site}.service"


def unit(
    site: str,
    config: str,
    folder: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    has_jobs: bool,
) -> str:
    """The unit's text.

    config, folder  absolute: the site's file, and where the agent works
    command         starts the agent, its first word an absolute path
    environment     what it needs of the present one; never secrets, anybody may read a unit
    has_jobs        whether jobs run as its children (the local launcher)
    Raises BadInput for a path that a unit cannot spell.
    """
    lines = [
        f"Environment={_quoted(f'{name}={value}')}" for name, value in sorted(environment.items()) if value
    ]
    words = {
        "SITE": site,
        "NAME": unit_name(site),
        "CONFIG": config,
        "COMMAND": " ".join(_quoted(word) for word in command),
        "FOLDER": _plain(folder),
        "ENVIRONMENT": "".join(f"{line}\n" for line in lines),
        "ENDS": _ENDS_FOR_GOOD,
        "NICE": _NICE_LOCAL if has_jobs else _NICE_LINES,
    }
    text = _UNIT
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _plain(value: str) -> str:
    if any(character in value for character in "\n\r\0"):
        raise BadInput(f"{value!r}: a unit cannot name a path with a line break; move it")
    return value.replace("%", "%%")


def _quoted(word: str) -> str:
    """One word of a command line or assignment; source: systemd.service(5), COMMAND LINES."""
    plain = _plain(word).replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{plain}"' if plain != word or any(c in plain for c in " \t';#") else plain
