"""SIGKILL on a transfer: another process goes on with the first byte that is not stored, and none is stored twice.

The agent's side is a real process and is really killed, at a chunk of the test's choosing. What was in the air then
(gRPC's window, the kernel's buffers) travels once more; how much that was is a property of the test's report.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_bench import AUTHORITY, Coordinator, CountingStore, bytes_of, site_credentials
from hostile_line import HostileLine

from consortium.channels import CHUNK_BYTES
from consortium.manifests import FileRef
from consortium.store import BlobStore, ref_of

pytestmark = pytest.mark.slow

SIZE = 12 * CHUNK_BYTES
NEVER = 1 << 40
#: moves one blob either way, and ends by SIGKILL once so many bytes have been moved
AGENT = """
import asyncio, os, signal, sys
from pathlib import Path
from sprachbund.v1 import artifact_pb2_grpc
from consortium.channels import open_channel
from consortium.identity import Credentials
from consortium.manifests import FileRef
from consortium.store import BlobStore
from consortium.transfer import download, upload
way, port, folder, path, digest, size, fatal = sys.argv[1:]
folder, ref = Path(folder), FileRef(digest=digest, size=int(size))
def moved(offset):
    print(offset, flush=True)
    if offset >= int(fatal):
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    own = Credentials((folder / "site.pem").read_bytes(), (folder / "site.key").read_bytes())
    async with open_channel("127.0.0.1:" + port, (folder / "ca.pem").read_bytes(), own) as channel:
        stub = artifact_pb2_grpc.ArtifactServiceStub(channel)
        if way == "up":
            await upload(stub, Path(path), ref, moved=moved)
        else:
            await download(stub, ref, BlobStore(folder / "store"), moved=moved)
asyncio.run(main())
"""


class Agent:
    """What an agent's process has on its disk, and the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        own = site_credentials("sofia")
        (folder / "site.pem").write_bytes(own.certificate)
        (folder / "site.key").write_bytes(own.key)
        (folder / "ca.pem").write_bytes(AUTHORITY.pem)

    async def move(self, way: str, port: int, path: Path, ref: FileRef, fatal: int = NEVER) -> list[int]:
        """How far it said that it was, each time."""
        arguments = (way, str(port), str(self.folder), str(path), ref.digest, str(ref.size), str(fatal))
        command = [sys.executable, "-c", AGENT, *arguments]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environment)
        assert done.returncode == (0 if fatal == NEVER else -signal.SIGKILL), done.stderr.decode()
        return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("chunks", [1, 4, 11])
@pytest.mark.parametrize("way", ["up", "down"])
async def test_what_was_stored_before_the_kill_is_not_sent_again(
    way: str, chunks: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    coordinator, agent = Coordinator(CountingStore(tmp_path / "coordinator")), Agent(tmp_path / "agent")
    path = tmp_path / "file"
    path.write_bytes(bytes_of(SIZE))
    ref = ref_of(path)
    if way == "down":
        coordinator.store.put_file(path)
        coordinator.readable.add(("sofia", ref.digest))
    async with coordinator.serving():
        line = HostileLine(coordinator.port)
        try:
            first = await agent.move(way, line.port, path, ref, chunks * CHUNK_BYTES)
            second = await agent.move(way, line.port, path, ref)
        finally:
            line.close()
    stored = sorted((begin, end) for _, begin, end in coordinator.store.appended)
    receiver = coordinator.store if way == "up" else BlobStore(agent.folder / "store")
    assert receiver.verify(ref.digest) == ref
    resumed = second[0] - CHUNK_BYTES  # what it says first is the end of its first chunk
    record_property("in the air", first[-1] - resumed)
    record_property("twice on the wire", line.carried[way] - SIZE)
    if way == "down":
        assert resumed == first[-1]  # every chunk that was stored, the one before the kill included
    else:
        assert [begin for begin, _ in stored] == [0, *(end for _, end in stored[:-1])]  # each byte once
        assert any(resumed == end for _, end in stored) or resumed == 0
