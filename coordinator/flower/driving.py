"""How a ServerApp runs from its beginning to its end, as often as it takes."""

from consortium.flower import compat
from consortium.flower.dice import seed
from consortium.flower.runs import FlowerRun
from coordinator.flower.apps import AppFiles, load_server_app
from coordinator.flower.grid import JobGrid, Tell
from coordinator.flower.post import Post


def drive(app: AppFiles, asked: FlowerRun, post: Post, tell: Tell = lambda text: None) -> FlowerRun:
    """Run the ServerApp on the consortium; returns the run as the ledger has it.

    Killed and called again with the same arguments, it ends in the same state. What the ServerApp raises goes on, and
    the run stays open: call again when the reason is gone, or stop the run.
    """
    seed(asked.run)  # Flower samples nodes with Python's dice
    server = load_server_app(app)
    run = post.open_run(asked)
    tell(f"run {run.run}: {app.server} with {run.app} at {', '.join(run.sites)}")
    grid = JobGrid(run, post, tell)
    context = compat.Context(
        run_id=grid.run.run_id,
        node_id=compat.SERVER_NODE,
        node_config={},
        state=compat.RecordDict(),
        run_config=dict(run.run_config),
    )
    server(grid, context)
    post.complete_run(run.run, "the ServerApp has ended")
    return run
