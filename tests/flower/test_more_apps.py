"""Apps as others write them, unmodified: torch with an evaluation at the server, client-side DP, secure aggregation.

Each is killed twice on its way and started again from its beginning; nothing is done twice, and the end is the same.
"""

import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flower_consortium import APP_FOLDER
from grids import SITES, PostHere, a_run

sys.path.insert(0, str(APP_FOLDER))

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import arrays_size_mod, fixedclipping_mod
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp import strategy as flower
from quickstart import task

from consortium.flower import compat
from consortium.flower.dice import seed
from consortium.flower.runs import node_of
from consortium.ids import digest_of
from coordinator.flower.grid import JobGrid

CONFIG = {"local-epochs": 1, "learning-rate": 0.5, "seconds-per-epoch": 0.0}
App = tuple[ServerApp, ClientApp, list[Any]]  #: the last one takes what the ServerApp ends with


class Killed(Exception):
    """Stands for SIGKILL: the process and all that it knew is gone."""


def torch_app() -> App:
    """A state dict, evaluated at the nodes and at the server, as in Flower's quickstart for PyTorch."""
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(task.FEATURES, 4)
            self.norm = torch.nn.BatchNorm1d(4)  # with an integer among its state
            self.outer = torch.nn.Linear(4, task.CLASSES)

        def forward(self, points: torch.Tensor) -> torch.Tensor:
            return self.outer(self.norm(self.inner(points)).relu())

    def data(node: int) -> tuple[torch.Tensor, torch.Tensor]:
        points, labels = task.load_data(node)
        return torch.from_numpy(points), torch.from_numpy(labels)

    def loaded(arrays: ArrayRecord) -> Net:
        net = Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        return net

    def accuracy(net: Net, node: int) -> float:
        points, labels = data(node)
        with torch.no_grad():
            return float((net.eval()(points).argmax(1) == labels).float().mean())

    client, server, end = ClientApp(), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        net = loaded(message.content["arrays"])
        rate = message.content["config"]["lr"]
        optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
        points, labels = data(context.node_id)
        for batch in torch.split(torch.randperm(len(labels)), 32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(points[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        content = {
            "arrays": ArrayRecord(net.state_dict()),
            "metrics": MetricRecord({"num-examples": len(labels)}),
        }
        return Message(RecordDict(content), reply_to=message)

    @client.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        found = accuracy(loaded(message.content["arrays"]), context.node_id)
        metrics = MetricRecord({"num-examples": task.POINTS, "accuracy": found})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        torch.manual_seed(0)
        result = flower.FedAvg().start(
            grid=grid,
            initial_arrays=ArrayRecord(Net().state_dict()),
            num_rounds=2,
            train_config=compat.ConfigRecord({"lr": 0.1}),
            evaluate_fn=lambda number, arrays: MetricRecord({"accuracy": accuracy(loaded(arrays), 1)}),
        )
        end.extend(result.arrays.to_numpy_ndarrays())
        end.append(np.array([found["accuracy"] for found in result.evaluate_metrics_serverapp.values()]))
        end.append(np.array([found["accuracy"] for found in result.evaluate_metrics_clientapp.values()]))

    return server, client, end


def clipped_app() -> App:
    """Differential privacy with the clipping at the nodes, by Flower's own mod, and another mod around it."""
    client, server, end = ClientApp(mods=[arrays_size_mod, fixedclipping_mod]), ServerApp(), []

    @client.train()
    def train(message: Message, context: Context) -> Message:
        model = message.content["arrays"].to_numpy_ndarrays()
        task.train(model, context.node_id, 1, 0.5)
        content = {"arrays": ArrayRecord(model), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        inner = flower.FedAvg(fraction_evaluate=0.0)
        strategy = flower.DifferentialPrivacyClientSideFixedClipping(inner, 0.1, 0.05, 3)
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(task.new_model()), num_rounds=3)
        end.extend(result.arrays.to_numpy_ndarrays())

    return server, client, end


def secret_app() -> App:
    """Secure aggregation (SecAgg+): four sendings a round, keys that stay in each node's Context.state."""
    from flwr.client import NumPyClient
    from flwr.client.mod import secaggplus_mod
    from flwr.common import ndarrays_to_parameters
    from flwr.server import LegacyContext, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow
    from flwr.server.workflow.constant import MAIN_PARAMS_RECORD

    class Node(NumPyClient):
        def __init__(self, node: int) -> None:
            self.node = node

        def fit(self, parameters: Any, config: Any) -> Any:
            task.train(parameters, self.node, 1, 0.5)
            return parameters, task.POINTS, {}

    client = ClientApp(lambda context: Node(context.node_id).to_client(), mods=[secaggplus_mod])
    server, end = ServerApp(), []

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_evaluate=0.0,
            min_fit_clients=3,
            min_available_clients=3,
            initial_parameters=ndarrays_to_parameters(task.new_model()),
        )
        legacy = LegacyContext(context=context, config=ServerConfig(num_rounds=2), strategy=strategy)
        secret = SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2, timeout=None)
        DefaultWorkflow(fit_workflow=secret)(grid, legacy)
        end.extend(legacy.state.array_records[MAIN_PARAMS_RECORD].to_numpy_ndarrays())

    return server, client, end


def run(make: Callable[[], App], post: PostHere) -> list[np.ndarray]:
    """The ServerApp from its beginning to its end; the arrays that it ends with."""
    asked = a_run(run_config=CONFIG)
    seed(asked.run)
    server, client, end = make()
    post._app = client
    grid = JobGrid(post.open_run(asked), post)
    context = compat.Context(grid.run.run_id, compat.SERVER_NODE, {}, RecordDict(), dict(CONFIG))
    server(grid, context)
    assert end
    return list(end)


@pytest.mark.parametrize(("make", "messages"), [(torch_app, 12), (clipped_app, 9), (secret_app, 24)])
def test_killed_twice_it_ends_the_same_and_asks_nobody_again(
    make: Callable[[], App], messages: int, tmp_path: Path
) -> None:
    post = PostHere(tmp_path, None, dice=random.Random(3))
    for blow in (0, 2):  # the first question for replies, and the third
        left = iter(range(blow, -1, -1))

        def strike(left: Any = left) -> None:
            if not next(left):
                raise Killed

        post.interrupt = strike
        with pytest.raises(Killed):
            run(make, post)
    post.interrupt = lambda: None
    first, asked = run(make, post), len(post.pushed)
    assert asked == post.executions == messages
    again = run(make, post)
    assert digest_of(b"".join(one.tobytes() for one in first)) == digest_of(
        b"".join(one.tobytes() for one in again)
    )
    assert len(post.pushed) == asked


def test_secure_aggregation_adds_up_to_the_plain_average(tmp_path: Path) -> None:
    """To within its quantisation."""
    post = PostHere(tmp_path, None)
    found = run(secret_app, post)
    model = task.new_model()
    for _ in range(2):
        trained = []
        for node in map(node_of, SITES):
            mine = [array.copy() for array in model]
            task.train(mine, node, 1, 0.5)
            trained.append(mine)
        model = [np.mean(arrays, axis=0) for arrays in zip(*trained, strict=True)]
    for ours, plain in zip(found, model, strict=True):
        assert np.abs(ours - plain).max() < 1e-4
