"""The coordinator is killed again and again while a base is made; the base comes all the same, bit for bit."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from trainer_samples import CONFIG

from consortium.canonical import encode
from consortium.ids import digest_of
from coordinator.making import made
from coordinator.making_process import WANTED, Base, BaseOrder

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PROGRAM = "coordinator.base_process"
LIFE = f"""
import sys
from pathlib import Path
from consortium.canonical import decode
from coordinator.making import made
from coordinator.making_process import BaseOrder
with made({PROGRAM!r}, decode(Path(sys.argv[1]).read_bytes(), BaseOrder), Path(sys.argv[2])) as base:
    print(base.manifest.digest)
"""


def test_lives_that_end_as_soon_as_they_ask_for_it_still_get_the_base(
    tmp_path: Path, tokenizer_json: Path
) -> None:
    work = Base(config=CONFIG, seed=3, tokenizer=digest_of(tokenizer_json.read_bytes()), shard_bytes=1 << 30)
    order, making = BaseOrder(work=work, tokenizer_json=str(tokenizer_json)), tmp_path / "making"
    (tmp_path / "order.json").write_bytes(encode(order))
    command = [sys.executable, "-c", LIFE, str(tmp_path / "order.json"), str(making)]
    told, lives, touched = "", 0, 0
    while not told:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as life:
            lives += 1
            while life.poll() is None and touched == (touched := _last_wish(making) or touched):
                time.sleep(0.01)
            life.kill()
            told = life.stdout.read() if life.stdout else ""
    assert lives > 1
    with made(PROGRAM, order, tmp_path / "undisturbed") as base:
        assert told.strip() == base.manifest.digest


def _last_wish(making: Path) -> int:
    """When a life last asked for what is being made; 0: never."""
    return max((path.stat().st_mtime_ns for path in making.glob(f"*/{WANTED}")), default=0)
