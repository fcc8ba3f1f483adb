"""Nothing that another party sends is run: no pickle, no model's code, no shell; by the source, and tried."""

import ast
import functools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from consortium.errors import BadInput
from site_agent.trainer.model import load_model

ROOT = Path(__file__).parents[2]
PACKAGES = ("consortium", "policies", "coordinator", "site_agent", "simulation", "console")
SOURCES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FORBIDDEN_MODULES = {
    *("pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"),
    *("torch.hub", "telnetlib", "ftplib", "xml.etree", "xml.dom", "xml.sax", "lxml"),
}
FORBIDDEN_CALLS = {
    *(
        "eval",
        "exec",
        "compile",
        "__import__",
        "os.system",
        "os.popen",
        "torch.load",
        "torch.save",
        "numpy.load",
    ),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "tempfile.mktemp"),
    *("zipfile.ZipFile", "shutil.unpack_archive", "torch.hub.load"),
}
#: Where a module is imported by a name: of Flower's own parts, and of apps that a site's operator or an admin names.
IMPORTS_BY_NAME = {
    "consortium/flower/compat.py",
    "coordinator/flower/apps.py",
    "site_agent/trainer/client_app.py",
}


@functools.cache
def trees() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse((ROOT / path).read_text(encoding="utf-8"))) for path in SOURCES]


def imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name, its modules by their full ones."""
    known = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            head, _, rest = name.partition(".")
            yield f"{known.get(head, head)}.{rest}" if rest else name, node


def keyword(call: ast.Call, name: str) -> object:
    for one in call.keywords:
        if one.arg == name:
            return one.value.value if isinstance(one.value, ast.Constant) else one.value
    return None


def test_every_source_is_looked_at() -> None:
    assert len(SOURCES) > 250


def test_nothing_that_unpickles_is_imported() -> None:
    for path, tree in trees():
        for name in imported(tree):
            for forbidden in FORBIDDEN_MODULES:
                assert name != forbidden and not name.startswith(f"{forbidden}."), f"{path}: imports {name}"


def test_nothing_is_called_that_runs_what_it_reads() -> None:
    for path, tree in trees():
        for name, call in calls(tree):
            where = f"{path}:{call.lineno}: {name}"
            assert name not in FORBIDDEN_CALLS, where
            assert keyword(call, "shell") is None, where
            assert keyword(call, "allow_pickle") in (None, False), where
            assert name != "tarfile.open" or keyword(call, "mode") == "w", (
                where
            )  # written, for a site; never read
            if name.rpartition(".")[2] == "import_module":
                assert str(path) in IMPORTS_BY_NAME, where


def test_no_model_brings_its_own_code() -> None:
    """Wherever transformers loads something, it says so; and weights come from safetensors alone."""
    found = set()
    for path, tree in trees():
        for name, call in calls(tree):
            verb = name.rpartition(".")[2]
            if verb in ("from_pretrained", "from_config"):
                found.add(str(path))
                where = f"{path}:{call.lineno}"
                assert keyword(call, "trust_remote_code") is False, where
                if verb == "from_pretrained":
                    assert keyword(call, "use_safetensors") is True, where
                    assert keyword(call, "local_files_only") is True, where
            elif not str(path).startswith("console/"):  # where mergekit's option is refused by its name
                assert keyword(call, "trust_remote_code") is None, f"{path}:{call.lineno}"
    assert found == {"consortium/models.py", "site_agent/trainer/model.py"}


@functools.cache
def modules() -> dict[str, tuple[Path, set[str]]]:
    """Every module of ours, and all that it imports, within functions too."""
    found = {}
    for path, tree in trees():
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        found[name] = path, set(imported(tree))
    return found


def reached_from(start: str) -> tuple[set[str], set[str]]:
    """What a program may ever import: our modules, and the names of others' packages."""
    known, seen, others, ahead = modules(), set[str](), set[str](), [start]
    while ahead:
        name = ahead.pop()
        if name in seen:
            continue
        seen.add(name)
        for one in known[name][1]:
            ours = one
            while ours and ours not in known:
                ours = ours.rpartition(".")[0]
            if ours:
                ahead += [".".join(ours.split(".")[:depth]) for depth in range(1, ours.count(".") + 2)]
            else:
                others.add(one.partition(".")[0])
        ahead = [one for one in ahead if one in known]
    return seen, others


#: What loads models or runs others' programs, and the programs that may: the coordinator's and the agent's may not.
LOADERS = {
    "torch",
    "transformers",
    "tokenizers",
    "flwr",
    "safetensors",
    "triton",
    "ray",
    "mergekit",
    "joblib",
    "pickle",
}
REACH = {
    "coordinator.daemon": set[str](),
    "coordinator.merging_process": set[str](),
    "coordinator.base_process": {"torch", "transformers", "tokenizers"},
    "site_agent.running": set[str](),
    "consortium.models": {"torch", "transformers", "tokenizers"},
    "site_agent.trainer.__main__": {"torch", "transformers", "tokenizers", "flwr", "triton"},
}


@pytest.mark.parametrize("program", sorted(REACH))
def test_what_a_program_can_reach_is_known(program: str) -> None:
    ours, others = reached_from(program)
    assert others & LOADERS <= REACH[program]
    assert others.isdisjoint(
        one.partition(".")[0] for one in FORBIDDEN_MODULES - {"xml.etree", "xml.dom", "xml.sax", "torch.hub"}
    )
    assert len(ours) > 4


def test_the_graph_of_imports_is_seen_whole() -> None:
    """All that a command line can lead to; what is left is started by itself, or by torch."""
    ours = set().union(*(reached_from(program)[0] for program in (*REACH, "console.main")))
    alone = {name for name in modules() if name not in ours and not name.endswith(("__main__", ".worker"))}
    assert {name.partition(".")[0] for name in alone} <= {"simulation", "policies"}
    assert reached_from("coordinator.daemon")[0] >= {
        "coordinator.driver",
        "consortium.store",
        "policies.campaign",
    }


class Payload:
    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.proof,)


CONFIG = {
    "architectures": ["GPTNeoXForCausalLM"],
    "model_type": "gpt_neox",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 300,
}


def test_a_pickled_model_is_not_opened(tmp_path: Path) -> None:
    model, proof = tmp_path / "model", tmp_path / "it ran"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(BadInput):
        load_model(model, torch.device("cpu"))
    assert not proof.exists()


def test_code_beside_a_model_is_not_run(tmp_path: Path) -> None:
    model, proof = tmp_path / "model", tmp_path / "it ran"
    model.mkdir()
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    (model / "config.json").write_text(json.dumps({**CONFIG, "model_type": "evil", "auto_map": auto}))
    (model / "evil.py").write_text(f"open({str(proof)!r}, 'w')\n")
    with pytest.raises(BadInput):
        load_model(model, torch.device("cpu"))
    assert not proof.exists()
