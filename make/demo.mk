##@ the bundled checkpoint

DEMO_STORE := model_store/demo
DEMO_ARCHIVE := $(DEMO_STORE)/clip_similarity.mar
DEMO_FILES := $(wildcard demo/checkpoint/*/* demo/checkpoint/*/*/*)
EXPORT_CODE := $(shell find clipserve export_scripts -name "*.py")

.PHONY: demo
demo: $(DEMO_ARCHIVE) ## set up, export the bundled checkpoint, serve it, run the example, stop
	@$(RUN) -m serving demo --store $(DEMO_STORE)

$(DEMO_ARCHIVE): $(DEMO_FILES) $(EXPORT_CODE) $(wildcard handlers/*) | $(VENV)/.run-stamp
	@rm -rf $(DEMO_STORE)
	@$(RUN) -m export_scripts export --model demo --precision fp32 --store $(DEMO_STORE)
	@$(RUN) -m export_scripts archive --store $(DEMO_STORE)

.PHONY: languages
languages: setup #: is the running server good in all 40 languages? a table, the weak ones, a heat map
	@$(RUN) -m demo.languages

.PHONY: quantized
quantized: setup #: what int8 and binary embeddings cost in retrieval, in 40 languages; writes demo/quantized.json
	@$(RUN) -m demo.quantized

.PHONY: train-demo
train-demo: setup #: train demo/checkpoint/ anew (about an hour; goes on where it was stopped)
	@$(RUN) -m demo.train

.PHONY: demo-results
demo-results: setup #: measure demo/checkpoint/ over HTTP; writes demo/RESULTS.md and demo/results/
	@$(RUN) -m demo.results
