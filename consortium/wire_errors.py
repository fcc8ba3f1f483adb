"""How our errors cross the wire and come out as the same errors.

A gRPC status carries a code for everybody's tools, our sentence as its message, and a
``google.rpc.ErrorInfo`` whose reason names the class in consortium/errors.py; what was done too often has a
``google.rpc.RetryInfo`` as well. What carries no ErrorInfo came from gRPC itself.
"""

import math
from typing import TypeVar, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from consortium.errors import (
    BadInput,
    Broken,
    Corrupt,
    DiskFull,
    Refused,
    SprachbundError,
    Superseded,
    TooOften,
    Unavailable,
)

DOMAIN = "sprachbund"
_MESSAGE_BYTES_MAX = 1500  # it travels twice, once percent-encoded; headers end at 8 KiB

_KINDS: tuple[tuple[str, type[SprachbundError], int], ...] = (
    ("BAD_INPUT", BadInput, code_pb2.INVALID_ARGUMENT),
    ("CORRUPT", Corrupt, code_pb2.DATA_LOSS),
    ("REFUSED", Refused, code_pb2.PERMISSION_DENIED),
    ("SUPERSEDED", Superseded, code_pb2.PERMISSION_DENIED),
    ("TOO_OFTEN", TooOften, code_pb2.PERMISSION_DENIED),
    ("UNAVAILABLE", Unavailable, code_pb2.UNAVAILABLE),
    ("DISK_FULL", DiskFull, code_pb2.RESOURCE_EXHAUSTED),
    ("BROKEN", Broken, code_pb2.INTERNAL),
)
_KIND_OF_REASON = {reason: kind for reason, kind, _ in _KINDS}

# without ErrorInfo: gRPC's own words. INTERNAL and UNKNOWN are also how a broken connection or a proxy looks
_KIND_OF_CODE: dict[grpc.StatusCode, type[SprachbundError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: BadInput,
    grpc.StatusCode.OUT_OF_RANGE: BadInput,
    grpc.StatusCode.UNIMPLEMENTED: BadInput,
    grpc.StatusCode.NOT_FOUND: Refused,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Refused,  # a message above the limit: the same again will not help
    grpc.StatusCode.DATA_LOSS: Corrupt,
}
_Detail = TypeVar("_Detail", error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo)
_NO_PLACE = "Concurrent RPC limit exceeded"  # in gRPC's own words: more calls at once than the server takes


def to_status(error: SprachbundError) -> grpc.Status:
    """The rich status of one of our errors; its sentence is cut to what fits into HTTP/2 headers."""
    kind = next(kind for kind in type(error).__mro__ if kind in _KIND_OF_REASON.values())
    reason, _, code = next(entry for entry in _KINDS if entry[1] is kind)
    message = str(error).encode("utf-8", "replace")[:_MESSAGE_BYTES_MAX].decode("utf-8", "ignore")
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    if isinstance(error, TooOften):
        delay = Duration(seconds=math.ceil(error.again_seconds))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> SprachbundError:
    """Our error for a failed call: the one the other side raised, or what gRPC's own code means to us."""
    call = cast(grpc.Call, error)
    message = call.details() or call.code().name
    info = _detail(call, error_details_pb2.ErrorInfo)
    if info is not None and info.domain == DOMAIN and info.reason in _KIND_OF_REASON:
        found = _KIND_OF_REASON[info.reason](message)
        if isinstance(found, TooOften):
            retry = _detail(call, error_details_pb2.RetryInfo)
            found.again_seconds = max(0.0, float(retry.retry_delay.seconds)) if retry else 0.0
        return found
    kind = Unavailable if _NO_PLACE in message else _KIND_OF_CODE.get(call.code(), Unavailable)
    return kind(f"{call.code().name.lower().replace('_', ' ')}: {message}{_hint(message)}")


def _detail(call: grpc.Call, kind: type[_Detail]) -> _Detail | None:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # made by something that is not us
        return None
    found = kind()
    for detail in status.details if status else ():
        if detail.Is(found.DESCRIPTOR) and detail.Unpack(found):
            return found
    return None


def _hint(message: str) -> str:
    """What to do about gRPC's own words; of a failed TLS handshake they only repeat OpenSSL's or the socket's."""
    if _NO_PLACE in message:
        return "; nothing has been done: try again in a minute"
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return "; the coordinator's certificate is not of the authority this party trusts: compare ca.pem"
    if "failed to connect" in message and ("Socket closed" in message or "reset by peer" in message):
        return "; if that lasts, it refuses this party's certificate: see its dates with `openssl x509 -noout -dates`"
    return ""
