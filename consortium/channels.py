"""How two parties are joined: TLS in both directions, keepalive, and how large a message may be.

TLS 1.2 is the least that gRPC speaks. The port with ``server_credentials`` demands a client certificate of
the consortium's authority; only the enrolment port answers a caller without one.
"""

import functools
import os
from collections.abc import Iterable, Mapping, Sequence

import grpc

from consortium.errors import Refused
from consortium.failover import Failover, addresses
from consortium.identity import Credentials, Identity, identity_of
from consortium.proxies import proxy_for

CHUNK_BYTES = 1 << 20  # equal to 3 MiB in CPU at half the memory; 64 KiB costs 2.2 times the CPU
AGENT = "sprachbund-agent"  #: how a site's agent calls itself
UPLOAD_ACCEPTED = "sprachbund-upload-accepted"  #: in initial metadata: the header is fine, send the data
WAITED = "sprachbund-waited"  #: in trailing metadata of a Sync: seconds for which there was nothing to say
CLOCK = "sprachbund-now"  #: in trailing metadata of a health check: epoch seconds at the coordinator
_MESSAGE_BYTES_MAX = 16 << 20  # a large campaign's view; chunks stay far below

_STRANGERS_BYTES_MAX = 64 << 10
_KEEPALIVE_SECONDS = 30  # a NAT on the way forgets an idle connection after minutes

CHANNEL_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.max_pings_without_data", 0),  # a long-polled Sync carries no data for a while
    ("grpc.max_reconnect_backoff_ms", 5_000),  # below the pause of an agent, lest the two add up
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
)

SERVER_OPTIONS: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", _KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_SECONDS * 500),  # accept the agents' pings
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.so_reuseport", 0),  # a second coordinator on the port is an error, not a coin toss
)

#: On the port that asks nobody for a certificate no message is larger than a token and a signing request, and nobody
#: stays: who says nothing would keep a place that others wait for.
ENROLMENT_OPTIONS: Sequence[tuple[str, int]] = (
    *(option for option in SERVER_OPTIONS if option[0] != "grpc.max_receive_message_length"),
    ("grpc.max_receive_message_length", _STRANGERS_BYTES_MAX),
    ("grpc.max_connection_age_ms", 20_000),
    ("grpc.max_connection_age_grace_ms", 10_000),
)


def channel_credentials(authority: bytes, own: Credentials | None = None) -> grpc.ChannelCredentials:
    """For a caller that trusts ``authority`` (PEM) and shows ``own`` certificate; None only to enrol."""
    if own is None:
        return grpc.ssl_channel_credentials(authority)
    return grpc.ssl_channel_credentials(authority, own.key, own.certificate)


def open_channel(
    target: str,
    authority: bytes,
    own: Credentials | None = None,
    *,
    proxy: str | None = None,
    program: str = "",
) -> grpc.aio.Channel:
    """A channel to the coordinator at ``target``; it reconnects by itself.

    target   ``host:port``, or several of them with commas between: those that take turns in leading
    proxy    the operator's setting, see ``proxies.proxy_for``; None: whatever the environment says
    program  what every call names as its user agent: program, release, incarnation
    Raises BadInput for a proxy that gRPC would silently pass by.
    """
    several = addresses(target)
    if len(several) > 1:
        return Failover(several, lambda one: open_channel(one, authority, own, proxy=proxy, program=program))
    through = proxy_for(target, proxy, os.environ)
    joined: list[tuple[str, int | str]] = list(CHANNEL_OPTIONS)
    joined.append(("grpc.http_proxy", through) if through else ("grpc.enable_http_proxy", 0))
    if program:
        joined.append(("grpc.primary_user_agent", program))
    return grpc.aio.secure_channel(target, channel_credentials(authority, own), options=joined)


def program_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> tuple[str, str]:
    """The release and incarnation that a call's user agent names, "" where it does not."""
    words = next((str(value) for name, value in metadata or () if name == "user-agent"), "").split()
    named = dict(word.split("/", 1) for word in words if "/" in word)
    return named.get(AGENT, ""), named.get("incarnation", "")


def user_agent(release: str, incarnation: str) -> str:
    return f"{AGENT}/{release} incarnation/{incarnation}"


def server_credentials(authority: bytes, own: Credentials) -> grpc.ServerCredentials:
    """For the port on which every caller must show a certificate of ``authority``."""
    return grpc.ssl_server_credentials(
        [(own.key, own.certificate)], root_certificates=authority, require_client_auth=True
    )


def enrolment_credentials(own: Credentials) -> grpc.ServerCredentials:
    """For the port on which a caller has no certificate yet."""
    return grpc.ssl_server_credentials([(own.key, own.certificate)])


def peer_identity(auth_context: Mapping[str, Sequence[bytes]], consortium: str, now: float) -> Identity:
    """Who is at the other end of a verified connection: give it ``context.auth_context()``.

    A connection may outlive its certificate, so the end of validity is checked again at each call.
    """
    certificates = auth_context.get("x509_pem_cert", ())
    if len(certificates) != 1:
        raise Refused("no client certificate; enrol first, then call with the site's certificate")
    identity = _read(certificates[0], consortium)
    if now > identity.not_after:
        raise Refused(
            f"certificate of {identity.role} {identity.name}: expired; enrol again with a new token"
        )
    return identity


#: A site shows the same certificate at each of its calls; reading one costs 0.2 ms.
_read = functools.lru_cache(maxsize=4096)(identity_of)
