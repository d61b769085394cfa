##@ benchmarks

BENCH = $(RUN) -m benchmarks.compare $(call GIVEN,SECONDS,--seconds) $(call GIVEN,ROUNDS,--rounds) \
	$(call GIVEN,MINUTES,--minutes) $(call GIVEN,BENCH_STORE,--store) $(foreach w,$(WORKERS),--workers $(w))

# A peer that cannot be installed here is named in the table; the others are measured without it.
.PHONY: bench
bench: $(VENV)/.bench-stamp #: all peers, half an hour at most, 16 GB; SECONDS ROUNDS MINUTES BENCH_STORE WORKERS=clip_image=2
	@$(MAKE) --no-print-directory $(INFINITY_VENV)/.run-stamp || echo "infinity-emb cannot be installed here" >&2
	@$(MAKE) --no-print-directory $(OPENVINO_VENV)/.run-stamp || echo "optimum-intel and NNCF cannot be installed here" >&2
	@$(BENCH)

.PHONY: bench-small
bench-small: $(VENV)/.bench-stamp #: all of it with tiny checkpoints, without other servers, sized for CI: three minutes
	@$(BENCH) --small --output .bench/small.json

.PHONY: bench-report
bench-report: $(VENV)/.bench-stamp #: docs/benchmarks.md with its plots, and the figures of other pages, from benchmarks/results/latest.json
	@$(RUN) -m benchmarks.compare --report

# A machine with a GPU has PyTorch for it, and perhaps no network: nothing is installed there but the wheels of a folder.
GPU_VENV := .venv-gpu
GPU_PYTHON = $(if $(value WHEELS),$(GPU_VENV)/bin/python,$(firstword $(wildcard $(GPU_VENV)/bin/python $(RUN)) $(PYTHON)))

.PHONY: gpu-proof
gpu-proof: $(if $(value DRY),$(VENV)/.bench-stamp) #: the GPU half exported, proven and measured, in under ten minutes; docs/gpu.md
#: OUTPUT=folder DRY=1: tiny, on a CPU; WHEELS=folder: first makes .venv-gpu of them, on top of PYTHON's packages
	@$(if $(value WHEELS),$(PYTHON) -m requirements.on_top $(GPU_VENV) $(call VALUE,WHEELS))
	@echo "loading PyTorch and transformers"
	@$(if $(value DRY),$(RUN),$(GPU_PYTHON)) -m benchmarks.gpu $(if $(value DRY),--dry) $(call GIVEN,OUTPUT,--output)

.PHONY: evaluate
evaluate: setup #: what each precision costs in retrieval and zero-shot, beside the original; docs/parity.md
#: MODEL=demo TEXT_MODEL STORE=folder IMAGES=captions.csv|folder of labels OUTPUT=folder
	@echo "loading PyTorch and transformers"
	@$(RUN) -m benchmarks.evaluate $(call GIVEN,MODEL,--model) $(call GIVEN,TEXT_MODEL,--text-model) \
		$(call GIVEN,STORE,--store) $(call GIVEN,IMAGES,--images) $(call GIVEN,OUTPUT,--output)

.PHONY: figures
figures: setup #: the figures in README and docs, again from the results that lie in benchmarks/ and demo/
	@$(RUN) -m benchmarks.figures

.PHONY: bench-bulk
bench-bulk: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp #: the bulk job beside plain processes on the same cores: minutes
	@$(SCALE) -m benchmarks.bulk

.PHONY: bench-search
bench-search: $(SEARCH_VENV)/.run-stamp #: ROWS=100000 KIND=clustered|uniform: latency, recall, size and memory
	@$(SEARCH) -m search.benchmark $(call GIVEN,ROWS,--rows) $(call GIVEN,KIND,--kind)

.PHONY: bench-page
bench-page: $(VENV)/.run-stamp $(SEARCH_VENV)/.dev-stamp $(DEMO_ARCHIVE) #: the page on 100,000 pictures: from Enter to results, memory; in Chromium
	@$(SEARCH) -m tests.search.page.measure_page
