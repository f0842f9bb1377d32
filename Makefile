# The two commands of a fresh machine are `make demo` and `make test`; each does all of its own set-up once.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# Python 3.10 to 3.12. A version manager's stub on PATH may fail, so every candidate is run.
found = $(shell for candidate in $(1); do \
	"$$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 \
	&& command -v "$$candidate" && break; done)
PYTHON ?= $(call found,python3.11 python3.12 python3.10 python3 python)

VENV := .venv
CONSTRAINTS :=# a file of versions, as pip's -c takes it
# Named after the contents that decide what is installed, so that a change of them installs again, and a touch does not.
STAMP := $(VENV)/.installed-$(shell cat pyproject.toml $(CONSTRAINTS) | cksum | cut -d' ' -f1)
OLDEST := .venv-oldest

DOCS := .venv-docs

export FACE2SCENE_WEIGHTS ?= $(CURDIR)/checkpoints/third_party
export TORCH_HOME := $(FACE2SCENE_WEIGHTS)/torch_home
export HF_HUB_OFFLINE := 1
export NO_MKDOCS_2_WARNING := 1
export OMP_WAIT_POLICY := passive

# Tests whose numbers depend on the processor's instruction set, run again with older ones.
NUMERICS := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q -n 2 -m 'numerics and not gpu and not slow and not browser and not fuzz and not chaos'

.PHONY: help venv demo test test-oldest lint docs site pictures clean

help: ## Show these targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

venv: $(STAMP) ## Create .venv and install everything that the demo and the tests need

demo: $(STAMP) ## Run the whole method at CPU scale; ends in runs/quickstart/report.html (PHOTOS=FOLDER adds yours)
	$(VENV)/bin/face2scene fetch quickstart
	$(VENV)/bin/python scripts/quickstart.py $(if $(PHOTOS),data.photos=$(PHOTOS) data.overwrite=true)

test: $(STAMP) ## Check style and types, and run the tests, the numerical ones on three instruction sets
	$(VENV)/bin/face2scene fetch tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q -n 2
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(NUMERICS)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(NUMERICS)

test-oldest: ## Run the tests with Python 3.10 and the oldest versions that are supported, constraints-oldest.txt
	$(MAKE) venv VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt PYTHON="$(or $(call found,python3.10),$(PYTHON))"
	$(OLDEST)/bin/face2scene fetch tests
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -q -n 2

docs: pictures site ## Draw the pictures of README and docs/ from what ships, and build the documentation into site/

site: $(DOCS)/.installed ## Build the documentation into site/, every link checked; needs neither torch nor weights
	PYTHONPATH=. $(DOCS)/bin/mkdocs build --strict --quiet
	@echo "The documentation is in site/index.html."

pictures: $(STAMP) ## Draw the pictures alone; the web page's too where Chromium and playwright are
	$(VENV)/bin/face2scene fetch quickstart real_esrgan_x4plus
	$(VENV)/bin/python scripts/draw_rooms.py
	$(VENV)/bin/python scripts/draw_method.py
	$(VENV)/bin/python scripts/draw_docs.py teaser restoring examples $$($(VENV)/bin/python -c 'import playwright' 2>/dev/null && echo page)

lint: $(STAMP) ## Repair the style automatically
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean: ## Remove environments and caches; weights, data and runs stay
	rm -rf $(VENV) $(OLDEST) $(DOCS) site .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pyiqa brings opencv-python-headless and, through facexlib, opencv-python. Both own the same folder, and the second one
# needs a display library that servers lack: it is removed, and the shared files are installed again. Its bitsandbytes
# serves a metric that is not used here and warns on every import: it is removed too.
# basicsr is a reference implementation in the tests; its requirements are for training and are left out (--no-deps).
# The tests also read RAW files and drive every face backend; wandb is not needed.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.12 is needed and none was found: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ($(PYTHON)); about five minutes and 9 GB of disk (7 stay), once."
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --no-compile --disable-pip-version-check --progress-bar on \
		$(addprefix -c ,$(CONSTRAINTS)) -e '.[quickstart,app,data,export,faces,dev,photos,raw,slurm]'
	$(VENV)/bin/python -m pip install --quiet --no-compile --disable-pip-version-check --no-deps 'basicsr>=1.4.2,<1.5'
	if $(VENV)/bin/python -m pip show --quiet opencv-python 2>/dev/null; then \
		headless=$$($(VENV)/bin/python -c 'import importlib.metadata as m; print(m.version("opencv-python-headless"))'); \
		$(VENV)/bin/python -m pip uninstall --quiet --yes opencv-python && \
		$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-compile --force-reinstall --no-deps \
			"opencv-python-headless==$$headless"; fi
	$(VENV)/bin/python -m pip uninstall --quiet --yes bitsandbytes
	rm -f $(VENV)/.installed-*
	touch $@

# The site needs neither torch nor the package: docstrings are read, not imported.
$(DOCS)/.installed: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.10 to 3.12 is needed and none was found: make docs PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	sed -n '/^docs = /p' pyproject.toml | grep -o '"[^"]*"' | tr -d '"' > $(DOCS)/requirements.txt
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r $(DOCS)/requirements.txt
	touch $@
