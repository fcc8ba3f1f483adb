"""What an agent hears of blobs where nothing travels: an input that is missing comes with the next bundle."""

from pathlib import Path

import pytest
from island import Island
from sprachbund.v1 import artifact_pb2, site_pb2

from consortium.errors import Unavailable
from consortium.ids import digest_of
from consortium.manifests import FileRef
from consortium.store import BlobStore
from consortium.transfer import Retries, download
from site_agent.courier.link import make_link

ONCE = Retries(attempts=1)


async def test_what_no_bundle_brought_is_waited_for(leased: Path, ohrid: Island, tmp_path: Path) -> None:
    ohrid.take_in(leased)
    link = make_link(ohrid.config, ohrid.identity, "one")
    news = await link.sync(site_pb2.SiteDescription(), (), 0.0)
    [order] = [offer.assignment for offer in news.offers]
    assert order is not None and order.tokenizer is not None
    for digest in (*order.inputs, order.tokenizer):
        with pytest.raises(Unavailable, match="the answer to the next bundle will bring it"):
            await link.artifacts.Stat(artifact_pb2.StatRequest(digest=digest))
    other = FileRef(digest=digest_of(b"of an order that is wanted no more"), size=7)
    with pytest.raises(Unavailable, match=f"input {other.digest} is not at this site"):
        await download(link.artifacts, other, BlobStore(tmp_path / "store"), ONCE)
    assert (await link.artifacts.Stat(artifact_pb2.StatRequest(digest=other.digest))).complete
