"""What people see: every screen is a pure function of a view, with no clock, file or network of its own."""

from console.screens.live import live
from console.screens.pages import status, story, versions
from console.screens.results import Comparison, compare, results_table
from console.screens.svg import to_svg

__all__ = ["Comparison", "compare", "live", "results_table", "status", "story", "to_svg", "versions"]
