"""How a campaign file becomes a campaign that the coordinator can begin: its files are brought there first."""

import asyncio
from pathlib import Path

from console.client import Coordinator, Done
from console.exporting import Bar
from consortium.canonical import replace
from consortium.manifests import FileRef
from consortium.store import ref_of
from consortium.transfer import upload
from consortium.versions import manifest_of
from policies.reading import CampaignFile

_TOKENIZER = "tokenizer.json"


async def submit_campaign(coordinator: Coordinator, read: CampaignFile, bar: Bar) -> Done:
    """Upload what the file names, name it by its digests in the campaign, and submit that."""
    campaign = read.campaign
    files: dict[str, FileRef] = {}
    paths: dict[str, Path] = {}
    if read.model_directory is not None:
        files = dict((await asyncio.to_thread(manifest_of, read.model_directory)).files)
        paths = {name: read.model_directory / name for name in files}
    if read.tokenizer_file is not None:
        files[_TOKENIZER] = await asyncio.to_thread(ref_of, read.tokenizer_file)
        paths[_TOKENIZER] = read.tokenizer_file
        tokenizer = replace(campaign.tokenizer, digest=files[_TOKENIZER].digest)
        campaign = replace(campaign, tokenizer=tokenizer)
    if read.model_directory is not None:
        campaign = replace(campaign, model=replace(campaign.model, files=files))
    for name, ref in sorted(files.items()):
        moved = bar(name, ref.size)
        await upload(coordinator.artifacts, paths[name], ref, moved=moved)
        moved(ref.size)  # also if it was there already
    return await coordinator.submit(campaign)
