# Everything a user or a contributor runs. `make demo` and `make serve` need Python 3.11+ and nothing else.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

FUZZ_SECONDS ?= 60
JOBS ?= 2
KSERVE ?= 0.21.0

.PHONY: help demo serve test chaos metrics-check kserve-check image-check k8s-check fuzz check format graphs protos clean

help:
	@echo "make demo    install, serve, denoise a photo and a clip over HTTP, show the result, stop"
	@echo "make serve   install, then serve on http://127.0.0.1:8000 until Ctrl-C"
	@echo "make test    install everything, run the tests"
	@echo "make chaos   kill, stop, cut off and fill up the service at work, and see that nothing is lost"
	@echo "make metrics-check  promtool over rules and alerts, and a real Prometheus over the service under load"
	@echo "make kserve-check  KServe's own clients, in an environment of their own, against the service"
	@echo "make image-check  build the images api and worker-cpu without Docker (as root: buildah, debootstrap) and use them"
	@echo "make k8s-check  render the Kubernetes overlays with kubectl and hold them against the schemas"
	@echo "make fuzz    feed spoilt files to the decoders for FUZZ_SECONDS (60)"
	@echo "make check   lint, format and types"
	@echo "make format  put the code into shape"
	@echo "make graphs  export the shipped weights to ONNX again"
	@echo "make protos  generate the gRPC code from the protos again"

demo: $(VENV)/light
	$(BIN)/python -m service.demo

serve: $(VENV)/light
	$(BIN)/quietframe serve

# Two files at a time: half of the tests wait for processes, the other half computes.
test: $(VENV)/full
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --durations 25 $(TESTS)

chaos: $(VENV)/full
	PYTHONPATH=tests $(BIN)/python -m chaos $(CHAOS)

# Debian's package, unpacked here where it is not installed: that needs no root, and starts no service.
metrics-check: $(VENV)/full
	@command -v promtool >/dev/null && command -v prometheus >/dev/null || test -x $(VENV)/prometheus/usr/bin/promtool || { \
	  command -v apt-get >/dev/null || { echo "install prometheus and promtool first: https://prometheus.io/download"; exit 1; }; \
	  mkdir -p $(VENV)/prometheus && cd $(VENV)/prometheus && apt-get download prometheus && dpkg-deb -x prometheus_*.deb . \
	  || { echo "apt-get cannot fetch it: as root, apt-get update and apt-get install prometheus"; exit 1; }; }
	$(BIN)/python -m pytest -m prometheus tests/test_metrics_live.py tests/test_compose.py

# KServe's package wants protobuf below 7 and our generated code 7, so it is installed apart; KSERVE names its version.
kserve-check: $(VENV)/full $(VENV)/kserve/$(KSERVE)
	$(BIN)/python -m pytest -m kserve tests/test_kserve.py

$(VENV)/kserve/$(KSERVE): | $(VENV)/python
	rm -rf $(VENV)/kserve
	$(BIN)/python -m venv $(VENV)/kserve
	$(VENV)/kserve/bin/python -m pip --disable-pip-version-check install --quiet kserve==$(KSERVE)
	@touch $@

# As root, with buildah and, where IMAGES does not name a base, debootstrap: IMAGES='--base python:3.11-slim'.
image-check: $(VENV)/full
	PYTHONPATH=tests $(BIN)/python -m images $(IMAGES)

k8s-check: $(VENV)/full
	@command -v kubectl >/dev/null || { echo "install kubectl first: https://kubernetes.io/docs/tasks/tools"; exit 1; }
	$(BIN)/python -m pytest tests/test_kubernetes.py

fuzz: $(VENV)/full
	PYTHONPATH=tests $(BIN)/python -m hostile.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

check: $(VENV)/full
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/full
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

graphs: $(VENV)/full
	$(BIN)/python -m trtbuild.export

protos: $(VENV)/full
	$(BIN)/python -m service.rpc.protos

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Quietframe needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# What serving needs: no torch.
$(VENV)/light: $(VENV)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

# And what training, export and the tests need.
$(VENV)/full: $(VENV)/light
	$(PIP) --editable '.[torch,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo-output
