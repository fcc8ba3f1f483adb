"""The ClientApp: trains on its node's points, remembers how often it was asked, and has a mod that measures."""

import time

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable

from quickstart import task


def timed(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod: counts the messages that it saw, in the state that stays at the node."""
    seen = context.state.get("seen", ConfigRecord({"messages": 0}))
    seen["messages"] += 1
    context.state["seen"] = seen
    return call_next(message, context)


app = ClientApp(mods=[timed])


@app.train()
def train(message: Message, context: Context) -> Message:
    model = message.content["arrays"].to_numpy_ndarrays()
    epochs, rate = int(context.run_config["local-epochs"]), float(context.run_config["learning-rate"])
    time.sleep(epochs * float(context.run_config["seconds-per-epoch"]))
    loss = task.train(model, context.node_id, epochs, rate)
    metrics = {"num-examples": task.POINTS, "loss": loss, "seen": context.state["seen"]["messages"]}
    content = RecordDict({"arrays": ArrayRecord(model), "metrics": MetricRecord(metrics)})
    return Message(content=content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    model = message.content["arrays"].to_numpy_ndarrays()
    metrics = {"num-examples": task.POINTS, "accuracy": task.accuracy(model, context.node_id)}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
