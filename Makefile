# The verbs of this project. A fresh machine needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
SEEDS ?= 2000

.PHONY: demo up check test quick sim soak chaos slurm debian vllm bench golden browser docs clean

demo: .venv/.demo ## turn this machine into a cloud and run a real training job on it
	@$(BIN)/python examples/demo.py

up: .venv/.run ## the same server, without the demonstration
	@$(BIN)/headframe up

check: .venv/.dev ## format, lint, types, import contracts
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff check --quiet --isolated --target-version py311 --select F --ignore F811 tests benchmarks examples docs
	@$(BIN)/lint-imports --no-cache >.venv/lint-imports.log 2>&1 || { cat .venv/lint-imports.log; exit 1; }
	@$(BIN)/basedpyright --level error

test: .venv/.dev ## everything
	@$(BIN)/python tests/components.py
	@$(BIN)/python -m pytest -n auto --dist worksteal

quick: .venv/.dev ## what needs no real component
	@$(BIN)/python -m pytest -n auto -m "not slow"

sim: .venv/.run ## a long simulation under faults; SEEDS=2000
	@$(BIN)/headframe simulate --seeds $(SEEDS)

soak: .venv/.dev ## a thousand kills of the real server, and of the gateway with all around it
	@HEADFRAME_KILLS=1000 HEADFRAME_KILL_JOBS=2000 $(BIN)/python -m pytest tests/real/test_kills.py tests/real/test_gateway_kills.py -k "sqlite or everything" -n 0 -s --timeout 0

chaos: .venv/.dev ## everything of Slurm and of Headframe is killed while jobs run there
	@HEADFRAME_CHAOS_JOBS=200 HEADFRAME_CHAOS_KILLS=50 $(BIN)/python -m pytest tests/real/test_slurm_chaos.py -n 0 -s --timeout 0

slurm: .venv/.dev ## the tests of Slurm on later ones, of Debian 13 and of the Debian after it; root, a quarter of an hour
	@for suite in trixie forky; do $(BIN)/python tests/later.py $$suite python -m pytest tests/real/test_slurm*.py tests/real/test_cluster.py -n 0 --timeout 0 --deselect tests/real/test_slurm_later.py || exit 1; done

debian: .venv/.dev ## a new Slurm cluster on three virtual machines with Debian 12 (or HEADFRAME_DEBIAN_SUITE=trixie); root, half an hour
	@HEADFRAME_DEBIAN=$${HEADFRAME_DEBIAN:-/var/tmp/headframe-debian} $(BIN)/python -m pytest tests/real/test_debian.py -n 0 -s --timeout 0

vllm: .venv/.dev ## the real vLLM on a CPU behind an endpoint: installs it apart, some gigabytes
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python tests/install_vllm.py
	@HEADFRAME_VLLM=$(CURDIR)/.venv-vllm/bin/python $(BIN)/python -m pytest tests/real/test_vllm.py -n 0 -s

bench: .venv/.dev ## figures beside their peers or limits
	@for file in benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

golden: .venv/.dev ## rewrite the golden files; read the diff
	@HEADFRAME_GOLDEN=write $(BIN)/python -m pytest tests/golden -n 0

browser: .venv/.dev ## the console in a real browser
	@$(BIN)/python -m pytest tests/browser -n 0

docs: .venv/.dev ## the generated reference
	@$(BIN)/python docs/generate.py

clean:
	rm -rf .venv .venv-vllm .headframe build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Headframe needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt pip

.venv/.run: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing Headframe into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

.venv/.demo: .venv/.run examples/digits/requirements.txt
	@echo "installing PyTorch and scikit-learn for the example (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt -r examples/digits/requirements.txt
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	@echo "installing Headframe and its tools into .venv (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@ .venv/.run
