"""How a plan, a seed and a weather become an outcome."""

from simulation.outcome import Cost, Ending, Happening, Made, Outcome

__all__ = ["Cost", "Ending", "Happening", "Made", "Outcome"]
