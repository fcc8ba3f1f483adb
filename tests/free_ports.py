"""Where may a program that a test starts listen? Where ours do: on a port that nobody else takes before it does."""

from consortium.ports import free_port, free_row

__all__ = ["free_port", "free_row"]
