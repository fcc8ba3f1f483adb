"""How our errors cross the wire and come out as the same errors.

A gRPC status carries a code for everybody's tools, our sentence as its message, and a
``google.rpc.ErrorInfo`` whose reason names the class in consortium/errors.py. What carries no ErrorInfo
came from gRPC itself.
"""

from typing import cast

import grpc
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
    Unavailable,
)

DOMAIN = "sprachbund"
_MESSAGE_BYTES_MAX = 1500  # it travels twice, once percent-encoded; headers end at 8 KiB

_KINDS: tuple[tuple[str, type[SprachbundError], int], ...] = (
    ("BAD_INPUT", BadInput, code_pb2.INVALID_ARGUMENT),
    ("CORRUPT", Corrupt, code_pb2.DATA_LOSS),
    ("REFUSED", Refused, code_pb2.PERMISSION_DENIED),
    ("SUPERSEDED", Superseded, code_pb2.PERMISSION_DENIED),
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
_NO_PLACE = "Concurrent RPC limit exceeded"  # in gRPC's own words: more calls at once than the server takes


def to_status(error: SprachbundError) -> grpc.Status:
    """The rich status of one of our errors; its sentence is cut to what fits into HTTP/2 headers."""
    kind = next(kind for kind in type(error).__mro__ if kind in _KIND_OF_REASON.values())
    reason, _, code = next(entry for entry in _KINDS if entry[1] is kind)
    message = str(error).encode("utf-8", "replace")[:_MESSAGE_BYTES_MAX].decode("utf-8", "ignore")
    status = status_pb2.Status(code=code, message=message)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain=DOMAIN))
    return rpc_status.to_status(status)


def from_rpc_error(error: grpc.RpcError) -> SprachbundError:
    """Our error for a failed call: the one the other side raised, or what gRPC's own code means to us."""
    call = cast(grpc.Call, error)
    message = call.details() or call.code().name
    info = _error_info(call)
    if info is not None and info.domain == DOMAIN and info.reason in _KIND_OF_REASON:
        return _KIND_OF_REASON[info.reason](message)
    kind = Unavailable if _NO_PLACE in message else _KIND_OF_CODE.get(call.code(), Unavailable)
    return kind(f"{call.code().name.lower().replace('_', ' ')}: {message}{_hint(message)}")


def _error_info(call: grpc.Call) -> error_details_pb2.ErrorInfo | None:
    try:
        status = rpc_status.from_call(call)
    except (ValueError, DecodeError):  # made by something that is not us
        return None
    info = error_details_pb2.ErrorInfo()
    for detail in status.details if status else ():
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            return info
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
