"""The model and the data: softmax regression on points around three centres, other points at every node."""

import numpy as np

CLASSES, FEATURES, POINTS = 3, 8, 240


def new_model() -> list[np.ndarray]:
    """Weights and bias, all zero."""
    return [np.zeros((FEATURES, CLASSES), np.float32), np.zeros(CLASSES, np.float32)]


def load_data(node: int) -> tuple[np.ndarray, np.ndarray]:
    """The points of one node; some nodes see more of one class than of the others."""
    centres = np.random.default_rng(7).normal(size=(CLASSES, FEATURES))
    dice = np.random.default_rng(node)
    labels = dice.choice(CLASSES, POINTS, p=dice.dirichlet(np.ones(CLASSES)))
    return (centres[labels] + dice.normal(size=(POINTS, FEATURES))).astype(np.float32), labels


def _probabilities(model: list[np.ndarray], points: np.ndarray) -> np.ndarray:
    scores = points @ model[0] + model[1]
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def train(model: list[np.ndarray], node: int, epochs: int, rate: float) -> float:
    """Gradient descent in place; returns the last loss in nats."""
    points, labels = load_data(node)
    loss = 0.0
    for _ in range(epochs):
        found = _probabilities(model, points)
        loss = float(-np.log(found[np.arange(POINTS), labels] + 1e-9).mean())
        found[np.arange(POINTS), labels] -= 1.0
        model[0] -= (rate * points.T @ found / POINTS).astype(np.float32)
        model[1] -= (rate * found.mean(axis=0)).astype(np.float32)
    return loss


def accuracy(model: list[np.ndarray], node: int) -> float:
    points, labels = load_data(node)
    return float((_probabilities(model, points).argmax(axis=1) == labels).mean())
