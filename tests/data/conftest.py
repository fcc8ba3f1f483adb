from pathlib import Path

import pytest
from text_samples import sentence, write_site

from site_agent.trainer.bpe import train_bpe


@pytest.fixture(scope="session")
def tokenizer_json(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(train_bpe([sentence(number) for number in range(100)], 320), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def site_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with every format: HPLT, FineWeb2, Common Crawl and plain text, in Estonian and Finnish."""
    return write_site(tmp_path_factory.mktemp("site"))
