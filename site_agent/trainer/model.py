"""How a model is loaded from a Hugging Face folder, with its weights by their names in the checkpoint."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from consortium.errors import BadInput
from consortium.tensors import Checkpoint, F32Array
from site_agent.trainer.llama import Llama
from site_agent.trainer.shape import Shape, shape_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights are float32; computing in bf16 is autocast's business.

    folder   it was loaded from
    weights  name in the checkpoint -> parameter; tied ones may appear under two names
    backend  which program computes it, for the manifest
    """

    folder: Path
    network: nn.Module
    vocabulary_size: int
    weights: Mapping[str, Tensor]
    backend: str

    @property
    def objective(self) -> nn.Module:
        """Token ids (B, S + 1) -> nats summed over the S targets of every row, a scalar."""
        return _PlainLoss(self.network) if isinstance(self.network, Llama) else _OwnLoss(self.network)

    def logits(self, ids_BS: Tensor) -> Tensor:
        """Logits (B, S, V), float32."""
        out = (
            self.network(ids_BS)
            if isinstance(self.network, Llama)
            else self.network(input_ids=ids_BS, use_cache=False).logits
        )
        floats: Tensor = out.float()
        return floats

    @torch.no_grad()
    def set_weights(self, tensors: Iterable[tuple[str, F32Array]]) -> None:
        for name, values in tensors:
            self.weights[name].copy_(torch.from_numpy(values))

    def arrays(self) -> "Arrays":
        return Arrays(self.weights)


class Arrays(Mapping[str, F32Array]):
    """Weights in main memory: on CPU the very same memory, from a GPU a copy, made when it is asked for."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> F32Array:
        return self._weights[name].detach().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder. Raises BadInput if it cannot be read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}; a model folder needs the config.json of transformers") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path}: must be a JSON object")
    return config


def load_model(folder: Path, device: torch.device, place: torch.device | None = None) -> Model:
    """The model in ``folder``, float32, to be computed on ``device``.

    place  where its weights are put; None: there, too

    On CPU what ``shape.py`` knows is computed by ``llama.py``; everything else by transformers, on a GPU with
    Liger's kernels where they are installed and know the architecture. Why, stands on stderr.
    Raises BadInput if the folder is no causal language model that can be trained tensor by tensor.
    """
    config = read_config(folder)
    shape = shape_of(config) if device.type == "cpu" else "on a GPU it has the faster kernels"
    with Checkpoint(folder) as checkpoint:
        if isinstance(shape, Shape):
            network: nn.Module = Llama(shape)
            backend = "native"
        else:
            print(f"{folder}: computed by transformers: {shape}", file=sys.stderr)
            network, backend = _from_transformers(folder, device, place or device)
        model = Model(
            folder=folder,
            network=network,
            vocabulary_size=config["vocab_size"],
            weights=_by_name(network, checkpoint),
            backend=backend,
        )
        if isinstance(shape, Shape):
            model.set_weights((name, checkpoint.array(name)) for name in checkpoint)
    return model


def _by_name(network: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    state = network.state_dict(keep_vars=True)
    weights = {name: state[name] for name in checkpoint if name in state}
    known = {id(weight) for weight in weights.values()}
    strange = sorted(checkpoint.keys() - state.keys())
    missing = sorted(name for name, weight in network.named_parameters() if id(weight) not in known)
    for fault, names in (("is not a weight of the model", strange), ("is missing", missing)):
        if names:
            raise BadInput(
                f"{checkpoint.label}: tensor {names[0]!r} {fault}; save the model again with transformers 5, "
                "in an architecture whose weights are trained under the names they are stored under"
            )
    for name, weight in weights.items():
        if tuple(weight.shape) != checkpoint[name].shape:
            raise BadInput(
                f"{checkpoint.label}: tensor {name!r} has shape {list(checkpoint[name].shape)}, config.json "
                f"asks for {list(weight.shape)}; save the model again"
            )
    return weights


def _from_transformers(folder: Path, device: torch.device, place: torch.device) -> tuple[nn.Module, str]:
    loader, backend = _loader(device)
    try:
        network = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            use_safetensors=True,  # a .bin is a pickle
            trust_remote_code=False,
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise BadInput(
            f"{folder}: transformers cannot load it as a causal language model: {error}"
        ) from error
    moved: nn.Module = network.to(place)
    return moved, backend


def _loader(device: torch.device) -> tuple[Any, str]:
    from transformers import AutoModelForCausalLM, __version__

    if device.type == "cuda":
        try:
            from liger_kernel.transformers import AutoLigerKernelForCausalLM

            return AutoLigerKernelForCausalLM, f"transformers {__version__} with liger"
        except ImportError:
            pass
    return AutoModelForCausalLM, f"transformers {__version__}"


class _PlainLoss(nn.Module):
    def __init__(self, network: Llama) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        logits = self.network(rows[:, :-1])
        return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


class _OwnLoss(nn.Module):
    """The loss that transformers, or Liger in its place, defines for the architecture."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, rows: Tensor) -> Tensor:
        targets = rows[:, 1:].contiguous()
        loss: Tensor = self.network(
            input_ids=rows[:, :-1],
            labels=targets,
            shift_labels=targets,
            num_items_in_batch=1,  # the divisor: the sum
            use_cache=False,
        ).loss
        return loss
