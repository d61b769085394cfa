# `make` alone shows what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `make export archive serve` is an order, also where MAKEFLAGS has -j.
.NOTPARALLEL:

PYTHON ?= python3
MODEL ?= clip-ViT-B-32
TEXT_MODEL ?=
DEVICE ?= cpu
PRECISION ?= auto
FORMAT ?= torchscript
STORE ?= model_store
MINUTES ?= 30

VENV := .venv
RUN := $(VENV)/bin/python

# What a user may hand in; defaults stand above, for ?= takes what is unexported here for defined. Values reach the
# recipes as variables of the environment, just as they were typed: make would expand a $, and the shell quotes and
# backticks, if a recipe named them itself.
ARGUMENTS := BENCH_STORE CAPTIONS COLUMN DEVICE ENCODER EXCLUDE FORGET FORMAT IMAGE IMAGES JSON KIND LIMIT MIN_SCORE \
	MINUTES MODEL PAGE PART PORT PRECISION RAY REQUESTS ROUNDS ROWS SECONDS SHEET SIMILAR STORE TABLE TEXT \
	TEXT_MODEL TEXTS
unexport $(ARGUMENTS)
$(foreach name,$(ARGUMENTS),$(eval export GIVEN_$(name) = $$(value $(name))))
# One of them as a word of the shell; no shell expands a ~ within quotes.
VALUE = "$${GIVEN_$(1)/\#\~\//$$HOME/}"
# An option with its value; without a value on the command line (or in the environment) the program's default holds.
GIVEN = $(if $(filter-out file default undefined,$(origin $(1))),$(2)=$(call VALUE,$(1)))
# Says what is missing, and how it is written.
NEEDED = test -n $(call VALUE,$(1)) || { echo "make $@: $(1) is missing: make $@ $(1)=$(2)" >&2; exit 2; }

# The one way into every environment: $(call INTO,environment,lock file,what it holds,further options)
UV_VENV := .venv-uv
INSTALLER := requirements/install.py $(UV_VENV)/.stamp
INTO = $(UV_VENV)/bin/python requirements/install.py $(1) $(2) --what "$(3)" --python "$(PYTHON)" \
	--device $(call VALUE,DEVICE) $(4)
define INSTALL
	@$(call INTO,$(1),$(2),$(3),$(4))
	@touch $@
endef

$(UV_VENV)/.stamp: requirements/uv.lock
	@$(PYTHON) -m venv --clear $(UV_VENV) || { rm -rf $(UV_VENV); echo "$(PYTHON) -m venv failed; name another Python (make PYTHON=python3.12 …), or on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@touch $@

DEMO_STORE := model_store/demo
DEMO_FILES := $(wildcard demo/checkpoint/*/* demo/checkpoint/*/*/*)
EXPORT_CODE := $(shell find clipserve export_scripts -name "*.py")

.PHONY: help
help: ## show this page
	@awk 'BEGIN {FS = ":.*## "; printf "clipserve: a CLIP checkpoint pair to TorchScript, and over HTTP\n\n"} \
		/^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##@ first

.PHONY: demo
demo: $(DEMO_STORE)/clip_similarity.mar ## set up, export the bundled checkpoint, serve it, run the example, stop
	@$(RUN) -m serving demo --store $(DEMO_STORE)

##@ export and serve

.PHONY: export
export: setup $(if $(filter onnx,$(value FORMAT)),$(VENV)/.onnx-stamp) ## MODEL=demo|hub name|folder TEXT_MODEL=… DEVICE PRECISION FORMAT=torchscript|djl|aoti|onnx
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts.export --model=$(call VALUE,MODEL) --device=$(call VALUE,DEVICE) \
		--precision=$(call VALUE,PRECISION) --format=$(call VALUE,FORMAT) $(call GIVEN,TEXT_MODEL,--text-model)

.PHONY: verify
verify: setup $(if $(wildcard model_store/*.onnx),$(VENV)/.onnx-stamp) ## compare what lies in model_store/, of all formats, with its checkpoints again
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts.verify $(call GIVEN,MODEL,--model) $(call GIVEN,TEXT_MODEL,--text-model)

.PHONY: known-answers
known-answers: $(VENV)/.dev-stamp ## published weights against numbers that others published; IMAGE=two_dogs_in_snow.jpg
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts.known_answers $(call GIVEN,IMAGE,--image)

.PHONY: archive
archive: setup ## package the encoders of model_store/ into .mar archives (MODEL=… where it holds several)
	@$(RUN) -m export_scripts.packages.archive $(call GIVEN,MODEL,--model)

.PHONY: triton
triton: setup ## a model repository for NVIDIA's Triton, in model_store/triton/ (MODEL=… DEVICE=… PRECISION=…)
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts.packages.triton --store model_store --output model_store/triton \
		--device=$(call VALUE,DEVICE) \
		$(call GIVEN,MODEL,--model) $(call GIVEN,PRECISION,--precision)

.PHONY: tune
tune: setup ## MODEL=… : time precisions, workers x threads and batches on this machine; archives with the best
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts.tune --model=$(call VALUE,MODEL) --device=$(call VALUE,DEVICE) \
		$(call GIVEN,TEXT_MODEL,--text-model)

.PHONY: serve
serve: setup ## start TorchServe on the archives; prints URL, token and three curl lines
	@$(RUN) -m serving serve

.PHONY: ready
ready: setup ## is every worker up, and does every golden input get its certified embedding?
	@$(RUN) -m serving ready

.PHONY: example
example: setup ## IMAGE=photo.jpg TEXTS="Two dogs in the snow|A cat on a table" against the running server
	@$(RUN) -m serving example $(call GIVEN,IMAGE,--image) $(call GIVEN,TEXTS,--texts)

.PHONY: stop
stop: setup ## stop TorchServe and its workers
	@$(RUN) -m serving stop

##@ the demo checkpoint

.PHONY: languages
languages: setup ## is the running server good in all 40 languages? a table, the weak ones, a heat map
	@$(RUN) -m demo.languages

.PHONY: train-demo
train-demo: setup ## train demo/checkpoint/ anew (about an hour; goes on where it was stopped)
	@$(RUN) -m demo.train

.PHONY: demo-results
demo-results: setup ## measure demo/checkpoint/ over HTTP and write demo/RESULTS.md
	@$(RUN) -m demo.results

##@ reliability

# RUNNING=1: the server that 'make serve' started, instead of one of its own on free ports.
TARGET = $(if $(value RUNNING),--running,--store=$(call VALUE,STORE))

.PHONY: chaos
chaos: setup ## STORE=… or RUNNING=1: kill, stop, flood, starve and restart the deployment; a scorecard
	@$(RUN) -m reliability chaos $(TARGET) $(call GIVEN,REQUESTS,--requests)

.PHONY: soak
soak: setup ## MINUTES=30: ordinary work with 2 % bad input; watches answers and memory
	@$(RUN) -m reliability soak $(TARGET) --minutes=$(call VALUE,MINUTES)

.PHONY: fuzz
fuzz: $(VENV)/.dev-stamp ## 50,000 damaged requests among good ones, and MINUTES of coverage-guided fuzzing
	@$(RUN) -m reliability fuzz $(TARGET) $(call GIVEN,REQUESTS,--requests)
	@$(RUN) -m pytest tests/fuzz --fuzz-seconds $$(( 60 * GIVEN_MINUTES )) -q

.PHONY: attack
attack: setup ## MINUTES=30, PROXY=1: requests that cost as much as they can, four at once among good ones
	@$(RUN) -m reliability cost $(TARGET) --minutes=$(call VALUE,MINUTES) $(if $(value PROXY),--proxy)

.PHONY: largest
largest: $(VENV)/.dev-stamp ## the largest pictures of every format, 16 at once; watches memory
	@$(RUN) -m reliability largest $(TARGET)

.PHONY: probe
probe: setup ## /ready and /live on PORT=8083 for load balancers and Kubernetes, no token needed
	@$(RUN) -m serving probe $(call GIVEN,PORT,--port)

.PHONY: test-reliability
test-reliability: $(VENV)/.dev-stamp $(DEMO_STORE)/clip_similarity.mar ## all of these, sized for CI: minutes
	@$(RUN) -m reliability chaos --store $(DEMO_STORE) --requests 300 --faults kill,queue,loris,leave,oversize
	@$(RUN) -m reliability soak --store $(DEMO_STORE) --minutes 2
	@$(RUN) -m reliability fuzz --store $(DEMO_STORE) --requests 5000
	@$(RUN) -m reliability cost --store $(DEMO_STORE) --minutes 1 --every 4
	@$(RUN) -m pytest tests/fuzz -q

##@ search

SEARCH_VENV := .venv-search
SEARCH := $(SEARCH_VENV)/bin/python
TABLE_GIVEN = $(call GIVEN,TABLE,--table)

.PHONY: index
index: $(SEARCH_VENV)/.run-stamp ## IMAGES=folder TABLE=… EXCLUDE='Screenshots/|*.gif' AGAIN=1: put its pictures into the table; FORGET=folder
	@$(if $(value FORGET),:,$(call NEEDED,IMAGES,~/Pictures))
	@$(SEARCH) -m search index $(TABLE_GIVEN) $(call GIVEN,EXCLUDE,--exclude) $(if $(value AGAIN),--again) \
		$(if $(value FORGET),$(call GIVEN,FORGET,--forget)) $(if $(value IMAGES),-- $(call VALUE,IMAGES))

.PHONY: search
search: $(SEARCH_VENV)/.run-stamp ## TEXT="két kutya a hóban" | IMAGE=photo.jpg | CAPTIONS=file; LIMIT MIN_SCORE PART SHEET JSON=1
	@$(SEARCH) -m search search $(call GIVEN,TEXT,--text) $(call GIVEN,IMAGE,--image) \
		$(call GIVEN,CAPTIONS,--captions) $(call GIVEN,LIMIT,--limit) $(call GIVEN,MIN_SCORE,--min-score) \
		$(call GIVEN,PART,--path) $(call GIVEN,SHEET,--sheet) $(if $(value JSON),--json) $(TABLE_GIVEN)

.PHONY: duplicates
duplicates: $(SEARCH_VENV)/.run-stamp ## TABLE=… SIMILAR=0.98 PAGE=found.html JSON=1: equal files and nearly equal pictures; deletes nothing
	@$(SEARCH) -m search duplicates $(TABLE_GIVEN) $(call GIVEN,SIMILAR,--threshold) $(call GIVEN,PAGE,--page) \
		$(if $(value JSON),--json)

.PHONY: heic
heic: setup $(SEARCH_VENV)/.run-stamp ## HEIC, as iPhones write it: its decoder (8 MB) for server, search and, where it is set up, scale
	@for environment in $(VENV) $(SEARCH_VENV) $(wildcard $(SCALE_VENV)); do \
		$(call INTO,$$environment,requirements/heic.lock,pillow-heif); done

.PHONY: ui
ui: $(SEARCH_VENV)/.run-stamp ## the page on 127.0.0.1: search and comparison in a browser (PORT=7860)
	@$(SEARCH) -m search ui $(call GIVEN,PORT,--port) $(TABLE_GIVEN)

.PHONY: demo-search
demo-search: $(DEMO_STORE)/clip_similarity.mar $(SEARCH_VENV)/.run-stamp ## draw 1,960 pictures, index them, ask in ten languages
	@$(SEARCH) -m search.demo --store $(DEMO_STORE)

.PHONY: test-search
test-search: $(VENV)/.run-stamp $(SEARCH_VENV)/.dev-stamp ## types and tests of search/, in a browser too
	@command -v chromium >/dev/null || { echo "no chromium for the page's test: apt-get install chromium" >&2; exit 1; }
	@$(SEARCH) -m mypy -p pictures -p search
	@$(SEARCH) -m pytest --confcutdir tests/search tests/pictures tests/search -m "not full" $(PYTEST_ARGS)

.PHONY: test-search-full
test-search-full: $(VENV)/.run-stamp $(SEARCH_VENV)/.dev-stamp ## 2,000 pictures: killed, resumed, changed, compared
	@$(SEARCH) -m pytest --confcutdir tests/search tests/search -m full $(PYTEST_ARGS)

.PHONY: bench-search
bench-search: $(SEARCH_VENV)/.run-stamp ## ROWS=100000 KIND=clustered|uniform: latency, recall, size and memory
	@$(SEARCH) -m search.benchmark $(call GIVEN,ROWS,--rows) $(call GIVEN,KIND,--kind)

$(SEARCH_VENV)/.run-stamp: requirements/search.lock $(INSTALLER)
	$(call INSTALL,$(SEARCH_VENV),requirements/search.lock,the search room's packages)

$(SEARCH_VENV)/.dev-stamp: requirements/search-dev.lock $(SEARCH_VENV)/.run-stamp
	$(call INSTALL,$(SEARCH_VENV),requirements/search-dev.lock,its tests' packages)

##@ old readers

OLD_TORCH_VENV := .venv-old-torch
OLD_TORCH := $(OLD_TORCH_VENV)/bin/python

.PHONY: test-old-torch
test-old-torch: $(VENV)/.dev-stamp $(OLD_TORCH_VENV)/.run-stamp ## today's encoder files in PyTorch 2.0, the oldest that opens them
	@$(RUN) -m pytest tests/old_torch $(PYTEST_ARGS)

$(OLD_TORCH_VENV)/.run-stamp: requirements/old-torch.lock requirements/old-torch.txt tests/old_torch/stand_ins.py $(INSTALLER)
	$(call INSTALL,$(OLD_TORCH_VENV),requirements/old-torch.lock,an old PyTorch (620 MB to fetch),--newest 3.11 --without-needs requirements/old-torch.txt)
	@$(OLD_TORCH) tests/old_torch/stand_ins.py || { rm $@; exit 1; }

##@ benchmarks

INFINITY_VENV := .venv-infinity
INFINITY := $(INFINITY_VENV)/bin/python
BENCH = $(RUN) -m benchmarks.compare $(call GIVEN,SECONDS,--seconds) $(call GIVEN,ROUNDS,--rounds) \
	$(call GIVEN,BENCH_STORE,--store) $(foreach w,$(WORKERS),--workers $(w))

# A peer that cannot be installed here is named in the table; the others are measured without it.
.PHONY: bench
bench: $(VENV)/.bench-stamp ## all peers side by side, half an hour, 8 GB; SECONDS ROUNDS BENCH_STORE WORKERS=clip_image=2
	@$(MAKE) --no-print-directory $(INFINITY_VENV)/.run-stamp || echo "infinity-emb cannot be installed here" >&2
	@$(BENCH)

.PHONY: bench-small
bench-small: $(VENV)/.bench-stamp ## ours beside sentence-transformers in process, sized for CI: a minute or two
	@$(BENCH) --small --output .bench/small.json

.PHONY: bench-report
bench-report: $(VENV)/.bench-stamp ## docs/benchmarks.md and its plots from benchmarks/results/latest.json
	@$(RUN) -m benchmarks.compare --report

$(VENV)/.bench-stamp: requirements/bench.lock $(VENV)/.dev-stamp
	$(call INSTALL,$(VENV),requirements/bench.lock,the benchmark's packages)

$(INFINITY_VENV)/.run-stamp: requirements/infinity.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,$(INFINITY_VENV),requirements/infinity.lock,infinity-emb a peer of the benchmark,--newest 3.13 --torch requirements/torch.txt)

##@ scale

SCALE_VENV := .venv-scale
SCALE := $(SCALE_VENV)/bin/python

.PHONY: bulk
bulk: $(SCALE_VENV)/.run-stamp ## IMAGES=folder|file.parquet|shard.tar TABLE=… RAY=host:port ENCODER=file.pt: embed a collection
	@$(call NEEDED,IMAGES,/data/pictures)
	@$(SCALE) -m scale.bulk $(TABLE_GIVEN) $(call GIVEN,RAY,--ray-address) \
		$(call GIVEN,ENCODER,--encoder) $(call GIVEN,COLUMN,--column) $(BULK_ARGS) -- $(call VALUE,IMAGES)

.PHONY: test-scale
test-scale: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp $(DEMO_STORE)/clip_similarity.mar ## types and tests of scale/, on clusters of two nodes here
	@$(SCALE) -m mypy -p scale -m benchmarks.bulk
	@$(SCALE) -m pytest --confcutdir tests/scale tests/scale -m "not full" $(PYTEST_ARGS)

.PHONY: test-scale-full
test-scale-full: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp $(DEMO_STORE)/clip_similarity.mar ## 20,000 pictures, a node and a writer killed; memory
	@$(SCALE) -m pytest --confcutdir tests/scale tests/scale -m full $(PYTEST_ARGS)

.PHONY: bench-bulk
bench-bulk: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp ## the bulk job beside plain processes on the same cores: minutes
	@$(SCALE) -m benchmarks.bulk

$(SCALE_VENV)/.run-stamp: requirements/scale.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,$(SCALE_VENV),requirements/scale.lock,Ray and the scale room's packages,--torch requirements/torch.txt)

$(SCALE_VENV)/.dev-stamp: requirements/scale-dev.lock $(SCALE_VENV)/.run-stamp
	$(call INSTALL,$(SCALE_VENV),requirements/scale-dev.lock,its tests' packages)

##@ Ray Serve

.PHONY: serve-ray
serve-ray: $(SCALE_VENV)/.run-stamp ## STORE=… PORT=8000 DEVICE=cpu|cuda: the same endpoints, and OpenAI's, on Ray Serve; Ctrl-C stops it
	@$(SCALE) -m scale.serve --store=$(call VALUE,STORE) $(call GIVEN,PORT,--port) $(call GIVEN,DEVICE,--device) \
		$(call GIVEN,MODEL,--model)

.PHONY: test-serve-ray
test-serve-ray: $(VENV)/.dev-stamp $(SCALE_VENV)/.run-stamp ## the tests of HTTP, errors and faults that TorchServe passes, on Ray Serve
	@$(RUN) -m pytest tests/http --server ray $(PYTEST_ARGS)

test-scale: test-serve-ray

##@ work on it

.PHONY: setup
setup: $(VENV)/.run-stamp ## create .venv with pinned versions, and a Java where there is none

.PHONY: test
test: $(VENV)/.bench-stamp ## every test that needs no GPU, a real TorchServe included
	@$(RUN) -m pytest -m "not full" $(PYTEST_ARGS)

.PHONY: test-full
test-full: $(VENV)/.dev-stamp ## the whole flow with full-size checkpoints (random weights): minutes, 6 GB
	@$(RUN) -m pytest -m full tests/full tests/export_scripts/test_formats.py tests/export_scripts/test_cli.py $(PYTEST_ARGS)

.PHONY: check
check: $(VENV)/.bench-stamp ## formatting, lint and types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

.PHONY: lock
lock: $(VENV)/.dev-stamp ## resolve the pinned versions anew
	@$(RUN) requirements/lock.py

.PHONY: sbom
sbom: setup $(UV_VENV)/.stamp ## sbom.json: what .venv holds, as CycloneDX, for a scanner of vulnerabilities
	@echo "asking cyclonedx-py what $(VENV) holds"
	@$(UV_VENV)/bin/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-reproducible \
		--short-PURLs --of JSON -o sbom.json $(RUN)
	@echo "sbom.json"

.PHONY: clean
clean: ## remove what was built (not .venv, not the exported encoders)
	@rm -rf $(DEMO_STORE) .mypy_cache .ruff_cache .pytest_cache .hypothesis logs

$(VENV)/.run-stamp: requirements/run.lock requirements/java.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,$(VENV),requirements/run.lock,transformers and TorchServe and what they need,--torch requirements/torch.txt)
	@$(RUN) -m serving.java >/dev/null 2>&1 || $(call INTO,$(VENV),requirements/java.lock,a Java as none of version 17 or later is on PATH) || { rm $@; exit 1; }

$(VENV)/.onnx-stamp: requirements/onnx.lock $(VENV)/.run-stamp
	$(call INSTALL,$(VENV),requirements/onnx.lock,ONNX's packages)

$(VENV)/.dev-stamp: requirements/dev.lock $(VENV)/.onnx-stamp
	$(call INSTALL,$(VENV),requirements/dev.lock,the tests' packages)

$(DEMO_STORE)/clip_similarity.mar: $(DEMO_FILES) $(EXPORT_CODE) $(wildcard handlers/*) | $(VENV)/.run-stamp
	@rm -rf $(DEMO_STORE)
	@$(RUN) -m export_scripts.export --model demo --precision fp32 --store $(DEMO_STORE)
	@$(RUN) -m export_scripts.packages.archive --store $(DEMO_STORE)
