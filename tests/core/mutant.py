"""What is a mutant: one small, plausible mistake in one place of the coordinator."""

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str  #: below ``coordinator/``
    right: str  #: stands there exactly once
    wrong: str


def in_file(file: str, *mistakes: tuple[str, str, str]) -> tuple[Mutant, ...]:
    """mistakes  name, right, wrong"""
    return tuple(Mutant(name, file, right, wrong) for name, right, wrong in mistakes)
