# Two commands do everything on a fresh machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKDIR ?=
SEED ?= 1
JOBS ?= 2
SEEDS := tests/simulation/test_seeds.py

.PHONY: seeds mutation demo test test-here test-on-slurm test-seeds check format stubs schemas chaos storm stutter slurm slurm-demo slurm-release soak benchmarks sbom audit clean help

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | sort

demo: $(VENV)/demo-installed  ## set up, then a whole consortium on this machine: WORKDIR=... SEED=1
	$(BIN)/sprachbund demo $(if $(WORKDIR),--workdir $(WORKDIR)) --seed $(SEED)

test: $(VENV)/dev-installed  ## set up, then all checks and tests, by three processes that mostly wait (JOBS=2 ...), and seeds meanwhile
	$(MAKE) --jobs 4 --keep-going --output-sync=line check test-here test-on-slurm test-seeds

test-here: $(VENV)/dev-installed
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --ignore tests/slurm --ignore tests/ssh --ignore $(SEEDS)

test-seeds: $(VENV)/dev-installed  # takes what the others leave of the processors
	$(BIN)/python -m pytest $(SEEDS)

test-on-slurm: $(VENV)/dev-installed  # one process: they share a cluster, which it starts and takes down
	$(BIN)/python -m pytest tests/slurm tests/ssh

check: $(VENV)/dev-installed  ## format, lint, types, import contracts, generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python tests/generated_files.py

format: $(VENV)/dev-installed  ## lay the code out
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

stubs: $(VENV)/dev-installed  ## generate protos/**/*_pb2* anew
	PATH="$(CURDIR)/$(BIN):$$PATH" protos/generate.sh

schemas: $(VENV)/dev-installed  ## write policies/schemas/*.json anew
	$(BIN)/python -m policies.schemas policies/schemas

chaos: $(VENV)/dev-installed  ## kill the demo's processes at ten random moments; the same model must come out (about an hour)
	$(BIN)/python tests/chaos/kill_anything.py --kills 10

storm: $(VENV)/dev-installed  ## a thousand faults of every kind on real processes, as root for the small disks (an hour): LEDGER=postgres, SEED=...
	$(BIN)/python tests/chaos/storm.py --faults $(or $(FAULTS),1000) --ledger $(or $(LEDGER),sqlite) --seed $(SEED)

stutter: $(VENV)/dev-installed  ## tests whose processes stand still at random moments, to find races: TESTS=tests/agent SEED=1
	$(BIN)/python tests/stutter.py --seed $(SEED) -- $(BIN)/python -m pytest $(or $(TESTS),tests/agent tests/store tests/whole)

slurm: $(VENV)/dev-installed  ## the launcher on a real Slurm of its own, as root with its packages (minutes): .ci/run installs them
	SPRACHBUND_REQUIRE_SLURM=1 $(BIN)/python -m pytest -m '' tests/slurm

slurm-release: $(VENV)/dev-installed  ## the launcher on the Slurm of another Debian release, unpacked for it: RELEASE=trixie has 24.11
	$(BIN)/python tests/slurm/other_release.py $(or $(RELEASE),trixie)

seeds: $(VENV)/dev-installed  ## simulated consortia in bad weather, each from another seed: FROM=0 HOURS=1
	$(BIN)/python -m simulation.seeds $(or $(FROM),0) --hours $(or $(HOURS),1)

mutation: $(VENV)/dev-installed  ## breaks the core in many ways, one at a time; the simulation has to see nine of ten
	$(BIN)/python tests/simulation/mutation.py

soak: $(VENV)/dev-installed  ## the tests that take minutes each: Slurm through faults, the demo on it, many ranks
	$(BIN)/python -m pytest -m soak

slurm-demo: $(VENV)/dev-installed  ## the demo through a real Slurm on which five faults fall; FULL=1: the demo's own campaign
	$(BIN)/python tests/slurm/demo_through_faults.py $(if $(FULL),--full) --seed $(SEED)

benchmarks: $(VENV)/dev-installed  ## merging beside a plain copy and mergekit; 30 GB and an hour on a quiet machine: WORKDIR=...
	$(BIN)/python benchmarks/merging.py --workdir $(or $(WORKDIR),benchmark-run) --mergekit-python $(BIN)/python --markdown docs/merging-results.md

sbom: $(VENV)/dev-installed  ## a bill of materials of what is installed, CycloneDX 1.6: sbom.cdx.json
	$(BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --output-reproducible --spec-version 1.6 --output-format JSON --output-file sbom.cdx.json $(BIN)/python

audit:  ## ask the network's database of known vulnerabilities about every pin; in an environment of its own
	$(PYTHON) -m venv $(VENV)-audit
	$(VENV)-audit/bin/pip install --quiet pip-audit
	$(VENV)-audit/bin/pip-audit --no-deps --requirement constraints.txt

clean:  ## remove the virtual environment, the demo and the benchmark's models
	rm -rf $(VENV) $(VENV)-audit sbom.cdx.json demo-run demo-run-[0-9]* benchmark-run

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

SOURCES := pyproject.toml setup.py constraints.txt $(wildcard consortium/*/*.c consortium/*/*/*.c)

$(VENV)/demo-installed: $(VENV)/bin/pip $(SOURCES)
	@echo "installing pinned dependencies into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) --editable '.[demo]'
	@touch $@

$(VENV)/dev-installed: $(VENV)/bin/pip $(SOURCES)
	@echo "installing pinned dependencies into $(VENV) (a few minutes the first time)"
	$(PIP_INSTALL) --editable '.[dev]'  # which has all that the demo needs
	@touch $(VENV)/demo-installed $@
