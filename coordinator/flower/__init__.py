"""How a Flower ServerApp runs on the consortium: a process of its own that speaks with the coordinator as an admin."""
