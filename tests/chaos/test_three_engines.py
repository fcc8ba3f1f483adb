"""One campaign gives the same versions, whichever process is killed and on whatever engine.

The engines: real processes over gRPC, our simulation, Flower's own.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kill_anything import Blow, demo, shorten, struck, versions_in

from console.corpora import LICENCES, write_corpora
from console.demo import CAMPAIGN, start, views
from console.local import LocalConsortium, LocalSite
from consortium.ids import Language
from coordinator.driver import replay
from coordinator.ledger import Ledger
from coordinator.verification import verify
from simulation.real import simulate_folder

pytestmark = [pytest.mark.slow, pytest.mark.demo, pytest.mark.timeout(1200)]
SEED = 1
FLOWER_SECONDS = 600.0

#: A few steps of a very small model at two sites: every phase of a campaign, and as little work as there can be.
SMALL = {
    "campaign": CAMPAIGN,
    "languages": ["el", "fi"],
    "sites_expected": 2,
    "seed": SEED,
    "model": {
        "seed": SEED,
        "config": {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 512,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "max_position_embeddings": 64,
            "tie_word_embeddings": True,
        },
    },
    "tokenizer": {"train": {"vocabulary_size": 512, "bytes_per_language": 20000}},
    "rounds": 1,
    "train": {
        "steps": 6,
        "batch_sequences": 4,
        "sequence_tokens": 64,
        "checkpoint_steps": 3,
        "epochs_max": 8,
        "optimizer": {"learning_rate": 0.01},
    },
    "merge": {"preset": "diloco", "shard_bytes": 1 << 20},
    "gate": {"preset": "standard", "documents_min": 10},
    "admission": {"preset": "standard", "norm_max": 1.0},
    "quorum": {"minimum": 2, "deadline_hours": 1},
    "lease_seconds": 60,
}
TWO = (
    LocalSite("north", "Nordic Text Institute", "FI", (Language("fi"),)),
    LocalSite("south", "Aegean Computing Centre", "EL", (Language("el"),)),
)
Laid = tuple[LocalConsortium, Path]


def small(workdir: Path) -> Laid:
    workdir.mkdir(parents=True)
    here = LocalConsortium(
        workdir=workdir, name=CAMPAIGN, sites=TWO, text=workdir.parent / "text", sync_seconds=0.3
    )
    if not here.text.exists():
        write_corpora(here.text, here.languages)
    here.write_files({"private": LICENCES["gramps"], "public": LICENCES["gramps"]})
    campaign = workdir / "campaign.yaml"
    campaign.write_text(yaml.safe_dump(SMALL))
    return here, campaign


def keeping(workdir: Path) -> Laid:
    """The same over two rounds, and each site's second job goes on with what its first one left there."""
    here, campaign = small(workdir)
    train = SMALL["train"] | {"optimizer": {"learning_rate": 0.01, "warmup_steps": 2, "moments": "keep"}}
    campaign.write_text(yaml.safe_dump(SMALL | {"rounds": 2, "train": train | {"delta_dtype": "int8"}}))
    return here, campaign


def by_real_processes(laid: Laid) -> dict[str, str]:
    here, campaign = laid
    try:
        start(here, campaign)
        for _ in views(here):
            assert not here.dead(), (here.workdir / "logs" / f"{here.dead()[0]}.log").read_text()[-4000:]
    finally:
        here.stop()
    return versions_gone_on_with(here)


def by_our_simulation(laid: Laid) -> dict[str, str]:
    """With the real trainer; queues, network and time are simulated."""
    found = simulate_folder(laid[0].workdir)
    assert found.violations == ()
    return {version.name: version.digest for version in found.versions}


def by_flowers_simulation(laid: Laid) -> dict[str, str]:
    """Two clients at a time, in whatever order Ray likes; a process of its own, because Ray warns of much."""
    here, _ = laid
    done = subprocess.run(
        [sys.executable, "-m", "simulation.flower.app"],
        env={**os.environ, "SPRACHBUND_CAMPAIGN": str(here.workdir)},
        capture_output=True,
        text=True,
        timeout=FLOWER_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert verify(here.home, rebuild=False).problems == ()
    return versions_gone_on_with(here)


def versions_gone_on_with(here: LocalConsortium) -> dict[str, str]:
    """Each by name; no job of theirs began anew where something was left for it."""
    with Ledger(here.home / "ledger.sqlite", read_only=True) as ledger:
        assert not [job.id for job in replay(ledger).jobs.values() if "began" in job.reason]
    return versions_in(here)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], float]:
    """What real processes make of the small campaign, and in how many seconds."""
    laid = small(tmp_path_factory.mktemp("undisturbed") / "real")
    began = time.monotonic()
    return by_real_processes(laid), time.monotonic() - began


#: Besides the real processes. CI leaves Ray out: it may not start on a busy machine.
TWO_ENGINES = (by_our_simulation,)
THREE_ENGINES = (by_our_simulation, by_flowers_simulation)


@pytest.mark.parametrize(
    ("layout", "engines", "at_least"),
    [
        pytest.param(small, TWO_ENGINES, 2, id="first_two"),
        pytest.param(small, THREE_ENGINES, 2, id="all_three", marks=pytest.mark.soak),
        pytest.param(keeping, THREE_ENGINES, 3, id="moments_kept", marks=pytest.mark.soak),
        pytest.param(demo(SEED, shorten), THREE_ENGINES, 4, id="demo", marks=pytest.mark.soak),
    ],
)
def test_every_engine_makes_the_versions_of_the_real_processes(
    layout: Callable[[Path], Laid],
    engines: tuple[Callable[[Laid], dict[str, str]], ...],
    at_least: int,
    tmp_path: Path,
    undisturbed: tuple[dict[str, str], float],
) -> None:
    real = undisturbed[0] if layout is small else by_real_processes(layout(tmp_path / "real"))
    assert len(real) >= at_least
    for engine in engines:
        assert engine(layout(tmp_path / engine.__name__)) == real, engine.__name__


@pytest.mark.parametrize(
    "blow",
    [
        Blow("coordinator", 0.55, 1.0),
        Blow("agent", 0.4, 1.0),
        Blow("trainer", 0.6, 0.0),
    ],
    ids=lambda blow: blow.victim,
)
def test_killing_a_process_changes_nothing(
    blow: Blow, undisturbed: tuple[dict[str, str], float], tmp_path: Path, record_property: Any
) -> None:
    versions, seconds = undisturbed
    disturbed = struck(tmp_path / "demo", small, blow, seconds)
    record_property("blow", disturbed.what)
    assert disturbed.versions == versions
