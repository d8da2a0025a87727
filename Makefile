# The door: `make demo` and `make test` do all set-up themselves.
.PHONY: install demo test test-slow test-gpu check bench clean
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/pip install --quiet torch==2.13.0 -c constraints.txt
	$(BIN)/pip install --quiet -c constraints.txt -e '.[report,serve]'
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet -c constraints.txt -e '.[report,serve,dev]'
	touch $@

demo: install
	$(BIN)/lcn demo

# Two test processes with one compute thread each; more threads would only wait for each other.
# What a test needs of the system (a Redis, a Chromium) is installed where that is possible; without
# it those tests skip and say so.
test: $(VENV)/.installed-dev
	@timeout 180 sh scripts/install-test-programs.sh >/dev/null || echo "tests that need Redis or Chromium will skip"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not slow"

test-slow: $(VENV)/.installed-dev
	@timeout 180 sh scripts/install-test-programs.sh >/dev/null || echo "tests that need Redis or Chromium will skip"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m slow

# The Triton kernels: compiled where there is a GPU, interpreted where there is none. An
# environment of its own, because Triton is large and nothing else needs it.
GPU_VENV := .venv-gpu

$(GPU_VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/pip install --quiet --upgrade pip setuptools wheel
	$(GPU_VENV)/bin/pip install --quiet torch==2.13.0 -c constraints.txt
	$(GPU_VENV)/bin/pip install --quiet -c constraints.txt -e '.[dev,cuda]'
	touch $@

test-gpu: $(GPU_VENV)/.installed
	OMP_NUM_THREADS=1 $(GPU_VENV)/bin/python -m pytest -q -m triton

check: $(VENV)/.installed-dev
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/pyright
	$(BIN)/lint-imports

# The tables of docs/performance.md: about fifteen minutes on two quiet cores. A case takes three
# turns at least, whatever --seconds says; progress is on stderr.
ALL := sim_soft,eta,sdim,twin,lap
bench: install
	mkdir -p runs/bench
	$(BIN)/lcn bench train --backbone $(ALL) --n 500,2000 --group 1,8 --seconds 420 --json > runs/bench/train.jsonl
	$(BIN)/lcn bench train --backbone lap --n 2000 --items 100k,1M --seconds 50 --variant fast --json > runs/bench/items.jsonl
	$(BIN)/lcn bench train --backbone lap,eta,sdim --n 500,2000,10k --lengths full,ragged --variant fast --seconds 150 --json > runs/bench/lengths.jsonl
	$(BIN)/lcn bench train --backbone lap --n 2000 --threads 1,2 --seconds 60 --json > runs/bench/threads.jsonl
	$(BIN)/lcn bench train --backbone lap --n 2000 --batch 2048 --group 1,8 --seconds 90 --json > runs/bench/memory.jsonl
	$(BIN)/lcn bench score --backbone $(ALL) --seconds 60 --json > runs/bench/score.jsonl
	$(BIN)/python benchmarks/tables.py

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist src/*.egg-info
