"""Our campaign as a Flower app: the same core, trainer and merge, with Flower's engines to carry the words."""

from consortium.flower import compat as compat  # before any of flwr: it switches telemetry off
