"""How a model is loaded from a Hugging Face folder, with its weights by their names in the checkpoint."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from consortium.errors import BadInput
from consortium.tensors import Checkpoint, F32Array
from site_agent.trainer.attention import Documents
from site_agent.trainer.llama import Llama
from site_agent.trainer.shape import Shape, shape_of

Backend = Literal["native", "transformers", "liger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights are float32 as loaded; computing in bf16 is the business of autocast, or of the optimizer's masters.

    folder        it was loaded from
    weights       name in the checkpoint -> parameter; tied ones may appear under two names
    backend       which program computes it, for the manifest
    rows_at_once  tokens whose logits the loss of a native model makes at once; 0: all, see ``head.py``
    """

    folder: Path
    network: nn.Module
    vocabulary_size: int
    weights: Mapping[str, Tensor]
    backend: str
    rows_at_once: int = 0

    @property
    def is_native(self) -> bool:
        return isinstance(self.network, Llama)

    @property
    def objective(self) -> nn.Module:
        """ids (B, S), targets (B, S), and documents packed into them -> nats summed over all targets, a scalar."""
        if isinstance(self.network, Llama):
            return _PlainLoss(self.network, self.rows_at_once)
        return _OwnLoss(self.network)

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


def program_of(
    config: Mapping[str, Any], device: torch.device, backend: Backend | Literal["auto"]
) -> Shape | str:
    """The shape of a model that our own module is to compute, or why transformers is."""
    if backend == "native" or (backend == "auto" and device.type == "cpu"):
        return shape_of(config)
    return "on a GPU it has the faster kernels" if backend == "auto" else "the site's config says so"


def load_model(
    folder: Path,
    device: torch.device,
    place: torch.device | None = None,
    backend: Backend | Literal["auto"] = "auto",
) -> Model:
    """The model in ``folder``, float32, to be computed on ``device``.

    place    where its weights are put; None: there, too
    backend  the program wished for. auto: on CPU ``llama.py``; on a GPU transformers, with Liger's kernels where they
             are installed and know the architecture. What ``shape.py`` does not know goes to transformers in any case

    Why another program than ``llama.py``, stands on stderr.
    Raises BadInput if the folder is no causal language model that can be trained tensor by tensor, or for Liger where
    it is not.
    """
    config = read_config(folder)
    shape = program_of(config, device, backend)
    with Checkpoint(folder) as checkpoint:
        if isinstance(shape, Shape):
            with place or device:
                network: nn.Module = Llama(shape)
            said = "native"
        else:
            print(f"{folder}: computed by transformers: {shape}", file=sys.stderr)
            network, said = _from_transformers(folder, _loader(device, backend), place or device)
        model = Model(
            folder=folder,
            network=network,
            vocabulary_size=config["vocab_size"],
            weights=_by_name(network, checkpoint),
            backend=said,
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


def _from_transformers(folder: Path, chosen: tuple[Any, str], place: torch.device) -> tuple[nn.Module, str]:
    loader, backend = chosen
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


def _loader(device: torch.device, backend: str) -> tuple[Any, str]:
    from transformers import AutoModelForCausalLM, __version__

    if backend == "liger" or (backend == "auto" and device.type == "cuda"):
        try:
            from liger_kernel.transformers import AutoLigerKernelForCausalLM

            return AutoLigerKernelForCausalLM, f"transformers {__version__} with liger"
        except ImportError as error:
            if backend == "liger":
                raise BadInput(
                    f"engine.backend: liger: {error}; install the extra `gpu` where jobs run, or leave it out"
                ) from error
    return AutoModelForCausalLM, f"transformers {__version__}"


class _PlainLoss(nn.Module):
    def __init__(self, network: Llama, rows_at_once: int) -> None:
        super().__init__()
        self.network, self.rows_at_once = network, rows_at_once

    def forward(self, ids_BS: Tensor, targets_BS: Tensor, documents: Documents | None = None) -> Tensor:
        if self.rows_at_once:
            nats: Tensor = self.network(ids_BS, targets_BS, documents, self.rows_at_once).nats
            return nats
        logits_BSV = self.network(ids_BS, None, documents)
        return self.network.cost(logits_BSV.flatten(0, 1), targets_BS.flatten())


class _OwnLoss(nn.Module):
    """The loss that transformers, or Liger in its place, defines for the architecture."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids_BS: Tensor, targets_BS: Tensor, documents: Documents | None = None) -> Tensor:
        targets_BS = targets_BS.contiguous()
        # positions that begin anew are how transformers knows of documents; see engine.py for who really does
        places = {} if documents is None else {"position_ids": documents.places_BS}
        loss: Tensor = self.network(
            input_ids=ids_BS,
            labels=targets_BS,
            shift_labels=targets_BS,
            num_items_in_batch=1,  # the divisor: the sum
            use_cache=False,
            **places,
        ).loss
        return loss
