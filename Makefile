# `make test` and `make demo` need nothing first: each makes the environment and installs what is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.demo_installed
# A stamp appears only after everything is installed, so an install that was cut off is taken up again.
INSTALL = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or newer is needed, '$(PYTHON)' is $$($(PYTHON) --version 2>&1); set PYTHON=..." >&2; exit 1; }; \
	echo "installing the packages of constraints.txt into $(VENV): 7 GB, some minutes, without output"; \
	{ test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } \
	&& $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test docs format clean

demo: $(DEMO_INSTALLED)
	$(BIN)/python -m examples.digits.demo --config examples/digits/configs/demo.yaml

test: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	# Two processes, each with a Ray cluster for its share of the tests that need one.
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup

docs: $(INSTALLED)
	$(BIN)/python docs/config_page.py
	$(BIN)/mkdocs build --strict --config-file docs/site/mkdocs.yml

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(INSTALLED): pyproject.toml constraints.txt
	$(INSTALL) -e '.[completion,demo,gcs,onnx,s3,test]' && touch $@ $(DEMO_INSTALLED)

$(DEMO_INSTALLED): pyproject.toml constraints.txt
	$(INSTALL) -e '.[demo]' && touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
