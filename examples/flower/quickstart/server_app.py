"""The ServerApp: one of Flower's own strategies, and the final model in a file."""

import json
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedMedian, Krum

from quickstart import task

STRATEGIES = {"fedavg": FedAvg, "fedadam": FedAdam, "fedmedian": FedMedian, "krum": Krum}

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    result = STRATEGIES[str(config["strategy"])]().start(
        grid=grid,
        initial_arrays=ArrayRecord(task.new_model()),
        num_rounds=int(config["num-server-rounds"]),
    )
    out = Path(str(config.get("out", "model.npz")))
    with open(out, "wb") as file:
        np.savez(file, *result.arrays.to_numpy_ndarrays())
    metrics = {
        "train": {number: dict(found) for number, found in result.train_metrics_clientapp.items()},
        "evaluate": {number: dict(found) for number, found in result.evaluate_metrics_clientapp.items()},
    }
    out.with_suffix(".json").write_text(json.dumps(metrics, sort_keys=True))
