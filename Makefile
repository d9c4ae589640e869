# make demo    from nothing to a table: set up, prepare text, train a proxy and two base models, compare them
# make test    set up and run the tests
# make test-slurm  the job scripts on a private Slurm of two nodes; installs Debian's Slurm where it may (root, apt-get)
# make check   format, lint, types, import rules, links and commands in the documentation
# make setup   the virtual environment alone; PYTHON=... and TORCH=... bring an interpreter and a torch of your own:
#              make setup PYTHON=python3.12 TORCH="torch==2.9.0 --index-url URL"    installs that torch
#              make setup PYTHON=/opt/cluster/bin/python TORCH=                     uses the torch which that Python has

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
READY := $(VENV)/ready

.PHONY: demo test test-slurm check setup

demo: $(READY)
	$(VENV)/bin/python -m doge_ds.demo

# Two processes: many tests wait for ranks that they started. A file's tests stay together, they share what it made.
test: $(READY)
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-slurm: $(READY)
	$(VENV)/bin/python -m pytest tests/slurm -rs

check: $(READY)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python -m pytest tests/test_architecture.py tests/test_documentation.py tests/test_config_reference.py

setup: $(READY)

# The mark is newer than what it was made from, so a second call installs nothing.
$(READY): setup.py constraints.txt
	@command -v g++ >/dev/null || { echo "error: g++ is missing; DeepSpeed compiles its communication op with it (apt-get install g++)"; exit 2; }
	@echo "setting up $(VENV): torch, DeepSpeed, transformers and what they need; takes some minutes"
	[ -x $(VENV)/bin/pip ] || $(PYTHON) -m venv $(if $(TORCH),,--system-site-packages) $(VENV)
	$(if $(TORCH),$(VENV)/bin/pip install --quiet --disable-pip-version-check $(TORCH))
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[development]'
	@echo "compiling DeepSpeed's communication op for CPUs: about 1 minute, once for each user of this machine"
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" DS_ACCELERATOR=cpu $(VENV)/bin/python -c \
	  "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder; ShareMemCommBuilder().load(verbose=False)"
	@touch $@
