from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import warm_trainer
from trainer_samples import ALPHABETS, CONFIG, make_site, sentences

from consortium.models import initialise
from site_agent.trainer.bpe import train_bpe
from site_agent.trainer.folder import Site
from site_agent.trainer.ranks import Ranks


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _no_trainer_is_left() -> Iterator[None]:
    yield
    warm_trainer.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    texts = [text for language in ALPHABETS for text in sentences(language, 50)]
    path.write_text(train_bpe(texts, 320), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: Path) -> Path:
    """A model of 29k parameters."""
    folder = tmp_path_factory.mktemp("base") / "model"
    initialise(CONFIG, 3, tokenizer_json, folder)
    return folder


@pytest.fixture(scope="session")
def alone() -> Ranks:
    return Ranks(rank=0, world=1, device=torch.device("cpu"))
