"""Everything that we need of flwr and that flwr does not promise: one module to read when a new release comes.

Imported only where a Flower app runs, never at the start of a program. Telemetry and the update check are switched off
before flwr is imported; nothing is written unless flwr is asked to, and then below the user's cache folder.
``broken`` says in sentences what of this a release has changed; a test asks.
"""

import importlib
import os
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from consortium.errors import BadInput

SUPPORTED = (1, 41)  #: of flwr: major and minor release
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sprachbund" / "flower"

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
os.environ.setdefault("FLWR_HOME", str(_CACHE))


def check_release(installed: str | None) -> None:
    """Raise BadInput unless ``installed`` is a release of flwr that this was written for; None: there is none."""
    wanted = ".".join(map(str, SUPPORTED))
    if installed is None:
        raise BadInput(f"Flower apps need flwr {wanted}; install it with `pip install 'sprachbund[flower]'`")
    if not installed.startswith(f"{wanted}."):
        raise BadInput(
            f"flwr {installed} is installed, this release works with {wanted}: "
            f"`pip install 'flwr>={wanted},<{SUPPORTED[0]}.{SUPPORTED[1] + 1}'`"
        )


def installed_release() -> str | None:
    try:
        return version("flwr")
    except PackageNotFoundError:
        return None


check_release(installed_release())

# Public names come first, then those that flwr keeps for itself. Whoever needs one takes it from here.
from flwr.app import (  # noqa: E402
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message  # noqa: E402
from flwr.app.metadata import Metadata  # noqa: E402
from flwr.clientapp import ClientApp  # noqa: E402
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto  # noqa: E402
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict  # noqa: E402
from flwr.serverapp import Grid, ServerApp  # noqa: E402
from flwr.supercore.run import Run  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

__all__ = [
    "Array",
    "ArrayRecord",
    "ClientApp",
    "ConfigRecord",
    "Context",
    "Error",
    "Grid",
    "Message",
    "MetricRecord",
    "RecordDict",
    "Run",
    "ServerApp",
]

#: Of Flower's own servers; a ServerApp is told it is this node.
SERVER_NODE = 1
#: Seconds. Nothing here expires by itself, so a message claims to live for ten years from the epoch on.
_NEVER = 1e11


def be(run: int, node: int) -> None:
    """Who this process is to flwr, which keeps it in one place for the process: one run a process, then."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run, node, 1


def empty_run(number: int) -> Run:
    return Run.create_empty(number)


def instruction(
    content: RecordDict, *, run: int, node: int, message_id: str, message_type: str, group: str
) -> Message:
    """A message to ``node`` as it is rebuilt from storage: the same facts make the same message, whenever."""
    metadata = Metadata(
        run_id=run,
        message_id=message_id,
        src_node_id=SERVER_NODE,
        dst_node_id=node,
        reply_to_message_id="",
        group_id=group,
        created_at=0.0,
        ttl=_NEVER,
        message_type=message_type,
    )
    return make_message(metadata=metadata, content=content)


def name_message(message: Message, message_id: str) -> None:
    """Give a message its id: flwr leaves that to its server, and offers no setter."""
    message.metadata.__dict__["_message_id"] = message_id


def reply_to(message: Message, content: RecordDict | Error) -> Message:
    """A reply that comes from storage, with an id of its own."""
    reply = Message(content, reply_to=message)
    name_message(reply, f"{message.metadata.message_id}.reply")
    return reply


def records_to_bytes(records: RecordDict) -> bytes:
    """Flower's protobuf of a RecordDict; the same records give the same bytes."""
    data: bytes = recorddict_to_proto(records).SerializeToString(deterministic=True)
    return data


def records_from_bytes(data: bytes, what: str) -> RecordDict:
    """Raises BadInput for bytes that are no RecordDict."""
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(data))
    except Exception as error:  # of protobuf, or of flwr's own checks
        raise BadInput(f"{what}: no records of a Flower message ({type(error).__name__}: {error})") from error


#: What flwr does not promise: the module, the name, and what it must have.
_NOT_PROMISED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("flwr.supercore.task_identity", "TaskIdentity", ("_run_id", "_node_id", "_task_id")),
    ("flwr.supercore.run", "Run", ("create_empty",)),
    ("flwr.app.message", "make_message", ()),
    ("flwr.app.metadata", "Metadata", ("message_id", "reply_to_message_id", "group_id")),
    ("flwr.common.serde", "recorddict_to_proto", ()),
    ("flwr.common.serde", "recorddict_from_proto", ()),
    ("flwr.proto.recorddict_pb2", "RecordDict", ("FromString",)),
    ("flwr.serverapp", "Grid", ()),
)
#: What a Grid has to answer; one method more, and ours would be no Grid.
_GRID = frozenset(
    {"set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive"}
)


def broken() -> Iterable[str]:
    """What the installed flwr has changed of what this module relies on, a sentence each."""
    for module, name, members in _NOT_PROMISED:
        found: Any = getattr(_module(module), name, None)
        if found is None:
            yield f"flwr no longer has {module}.{name}; find what took its place and change consortium/flower/compat.py"
        for member in members if found is not None else ():
            if not hasattr(found, member):
                yield f"{module}.{name} no longer has {member}; change what uses it in consortium/flower/compat.py"
    if asked := set(getattr(Grid, "__abstractmethods__", ())) ^ _GRID:
        yield f"flwr's Grid asks for other methods than before ({', '.join(sorted(asked))}); change JobGrid"
    message = instruction(RecordDict(), run=1, node=2, message_id="", message_type="train", group="1")
    name_message(message, "named")
    if message.metadata.message_id != "named":
        yield "a message's id can no longer be set through Metadata.__dict__; change name_message"
    if reply_to(message, RecordDict()).metadata.reply_to_message_id != "named":
        yield "a reply no longer carries the id of its message; change reply_to"


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
