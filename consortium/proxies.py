"""Which HTTP proxy a connection goes through: the operator's setting, or the environment in either case.

gRPC reads ``grpc_proxy``, ``https_proxy`` and ``http_proxy``, and passes over ``HTTPS_PROXY``, ``ALL_PROXY`` and
``socks5://`` without a word: it then connects directly, which at a site behind a firewall looks like a coordinator
that is down. So the proxy is found here, and handed to gRPC by channel argument.
"""

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from consortium.errors import BadInput

#: In gRPC's order, then what others read; each in lower case, then in upper case.
_VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "all_proxy")
_EXCEPT = ("no_grpc_proxy", "no_proxy")


def proxy_for(target: str, setting: str | None, environment: Mapping[str, str]) -> str:
    """The proxy for a connection to ``target`` as ``http://[user:password@]host:port``; "" means none.

    target       ``host:port``
    setting      what the operator wrote; it outweighs the environment. None: nothing; "": no proxy at all
    environment  of the process
    Raises BadInput for a proxy that is not spoken to by HTTP CONNECT; the message shows no password.
    """
    if setting is not None:
        return check_proxy(setting)
    if _is_excepted(target.rpartition(":")[0].strip("[]"), environment):
        return ""
    for name in (spelling for lower in _VARIABLES for spelling in (lower, lower.upper())):
        if value := environment.get(name, "").strip():
            return _checked(value, name)
    return ""


def check_proxy(setting: str) -> str:
    """An operator's setting as a URL; "" stays "". Raises BadInput."""
    return _checked(setting, "proxy") if setting else ""


def without_password(proxy: str) -> str:
    """A proxy as it may be shown."""
    scheme, mark, rest = proxy.rpartition("://")
    return scheme + mark + rest.rpartition("@")[2]


def _checked(value: str, name: str) -> str:
    parts = urlsplit(value if "://" in value else f"http://{value}")
    shown = without_password(value)
    if parts.scheme != "http":
        raise BadInput(
            f"{name}: {shown} is spoken to by {parts.scheme}, only http:// proxies (CONNECT) can be used; "
            f"run a local bridge to it, or `ssh -L 7443:COORDINATOR:7443 HOST` and name 127.0.0.1:7443"
        )
    try:
        port = parts.port
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise BadInput(f"{name}: {shown} is not host:port; write it as http://proxy.example.eu:3128")
    return f"http://{parts.netloc}"


def _is_excepted(host: str, environment: Mapping[str, str]) -> bool:
    spellings = (spelling for name in _EXCEPT for spelling in (name, name.upper()))
    value = next((environment[name] for name in spellings if environment.get(name)), "")
    return any(_covers(entry.strip().lower(), host.lower()) for entry in value.split(",") if entry.strip())


def _covers(entry: str, host: str) -> bool:
    """Whether an entry of ``no_proxy`` is this host, a domain above it, or a network it lies in."""
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        name = entry.removeprefix("*").removeprefix(".")
        return host == name or host.endswith(f".{name}")
