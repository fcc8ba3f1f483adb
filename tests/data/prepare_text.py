"""A process that prepares a site's text in small segments, to be killed: SITE.yaml CACHE TOKENIZER PROCESSES BYTES."""

import sys
from functools import partial
from pathlib import Path

from site_agent.config import load_site_config
from site_agent.data.contents import Plan, plan_of
from site_agent.data.segments import Split
from site_agent.data.words import encoder, words_alone
from site_agent.holdings import by_language
from site_agent.prepared import prepare_all


def plans(config: Path, cache: Path, tokenizer: Path, segment_bytes: int) -> list[Plan]:
    loaded = load_site_config(config)
    words = words_alone(tokenizer, None)
    split = Split(heldout_share=loaded.heldout_share, seed=0)
    return [
        plan_of(sources, words, split, cache, segment_bytes) for sources in by_language(loaded.text).values()
    ]


def main(config: Path, cache: Path, tokenizer: Path, processes: int, segment_bytes: int) -> None:
    made = partial(encoder, tokenizer, words_alone(tokenizer, None))
    prepare_all(plans(config, cache, tokenizer, segment_bytes), processes, made, tokenizer)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
