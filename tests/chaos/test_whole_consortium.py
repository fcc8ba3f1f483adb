"""A whole consortium of real processes on real text: the model it makes, and what tells that it was changed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kill_anything import Outcome

from consortium.canonical import decode, encode
from consortium.ids import AttemptId, CampaignId, Digest, JobId, SiteName
from consortium.jobs import Assignment, Purpose
from consortium.manifests import VersionManifest
from consortium.store import BlobStore
from consortium.versions import lay_out
from coordinator.core.orders import merge_inputs, merge_order
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.verification import verify
from site_agent.trainer.folder import Site

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(1200)]

LANGUAGES = ["bg", "cs", "da", "el", "fi", "ga", "hu", "nl"]
USE_MODEL = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
words = AutoTokenizer.from_pretrained(sys.argv[1])
start = words("Vælg en", return_tensors="pt").input_ids
made = model.generate(start, max_new_tokens=5, do_sample=False)
print(json.dumps([words.decode(start[0]), made.shape[1] - start.shape[1]]))
"""


def home_of(workdir: Path) -> Path:
    return workdir / "coordinator"


def test_the_past_holds_and_every_version_can_be_made_again(calm: tuple[Outcome, Path]) -> None:
    outcome, workdir = calm
    report = verify(home_of(workdir))
    assert report.problems == ()
    assert outcome.version in report.versions.values()
    assert set(report.versions) == {"demo/v0", "demo/v1", "demo/v2", "demo/v3"}


def test_one_changed_byte_of_the_promoted_model_is_found(calm: tuple[Outcome, Path], tmp_path: Path) -> None:
    _, workdir = calm
    home = tmp_path / "coordinator"
    shutil.copytree(home_of(workdir), home)
    shard = max(home.glob("store/blobs/*/*"), key=lambda path: path.stat().st_size)
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    report = verify(home, rebuild=False)
    assert not report.ok
    assert any(shard.name in problem for problem in report.problems)


def test_a_deleted_blob_of_the_promoted_model_is_missed_by_name(
    calm: tuple[Outcome, Path], tmp_path: Path
) -> None:
    _, workdir = calm
    home = tmp_path / "coordinator"
    shutil.copytree(home_of(workdir), home)
    shard = max(home.glob("store/blobs/*/*"), key=lambda path: path.stat().st_size)
    shard.unlink()
    command = [sys.executable, "-m", "console.main", "verify", str(home), "--no-rebuild"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert shard.parent.name + shard.name in "".join((done.stdout + done.stderr).split())


def test_transformers_load_the_model_and_generate(calm: tuple[Outcome, Path], tmp_path: Path) -> None:
    outcome, workdir = calm
    model = next((home_of(workdir) / "work" / "versions").glob(f"{outcome.version}*"), None)
    if model is None:  # nobody trained on the last version; lay it out as an export would
        model = exported(outcome, workdir, tmp_path / "model")
    assert (model / "model.safetensors.index.json").is_file()
    assert len(list(model.glob("model-*.safetensors"))) > 1
    done = subprocess.run([sys.executable, "-c", USE_MODEL, str(model)], capture_output=True, check=True)
    text, new_tokens = json.loads(done.stdout.splitlines()[-1])
    assert text == "Vælg en"
    assert 1 <= new_tokens <= 5


def exported(outcome: Outcome, workdir: Path, target: Path) -> Path:
    assert outcome.version is not None
    store = BlobStore(home_of(workdir) / "store")
    manifest = decode(store.read_bytes(Digest(outcome.version), 1 << 24), VersionManifest, "version")
    lay_out(manifest, store.path, target)
    return target


def test_a_merge_job_at_a_site_gives_the_coordinators_digests(
    calm: tuple[Outcome, Path], tmp_path: Path
) -> None:
    """The demo's own contributions, merged once more by the trainer's program in a job directory."""
    _, workdir = calm
    store = BlobStore(home_of(workdir) / "store")
    with Ledger(home_of(workdir) / "ledger.sqlite", read_only=True) as ledger:
        state = replay(ledger)
    campaign = state.campaigns[CampaignId("demo")]
    for number, round_ in campaign.rounds.items():
        folder = tmp_path / f"r{number}"
        order = Assignment(
            job=JobId(f"demo_r{number}-merge"),
            attempt=AttemptId(f"demo_r{number}-merge.a1"),
            campaign=CampaignId("demo"),
            round=number,
            site=SiteName("anywhere"),
            purpose=Purpose.MERGE,
            work=merge_order(state, campaign, round_),
            inputs=merge_inputs(state, campaign, round_),
            tokenizer=campaign.tokenizer,
        )
        lay_out(campaign.versions[round_.base].manifest, store.path, folder / "base")
        for ref in order.work.files:
            store.copy_to(ref.digest, folder / "inputs" / ref.digest, link=True)
        (folder / "job.json").write_bytes(encode(order))
        (folder / "site.json").write_bytes(encode(Site(text=(), heldout_share=0.1, cache="", threads=1)))
        subprocess.run([sys.executable, "-m", "site_agent.trainer", str(folder)], check=True)
        made = decode((folder / "result" / "version.json").read_bytes(), VersionManifest)
        assert made.digest == round_.candidate


def test_no_text_left_a_site(calm: tuple[Outcome, Path]) -> None:
    """Whole held-out or training sentences are in no blob and in no ledger entry."""
    _, workdir = calm
    sentences = []
    for language in LANGUAGES:
        lines = (workdir / "text" / "private" / f"{language}.jsonl").read_text().splitlines()
        sentences += [json.loads(line)["text"].encode() for line in lines[::25]]
    assert len(sentences) > 50
    home = home_of(workdir)
    for path in (*home.glob("store/blobs/*/*"), home / "ledger.sqlite"):
        data = path.read_bytes()
        found = [s for s in sentences if s in data or json.dumps(s.decode())[1:-1].encode() in data]
        assert not found, path
