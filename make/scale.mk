##@ more than one machine

.PHONY: bulk
bulk: $(SCALE_VENV)/.run-stamp ## IMAGES=folder|x.parquet|x.tar: put a large collection into a table, on Ray
#: TABLE=folder RAY=host:port MODEL=name ENCODER=file.pt COLUMN=name EXCLUDE='Screenshots/|*.gif'
	@$(call NEEDED,IMAGES,/data/pictures)
	@$(SCALE) -m scale.bulk $(TABLE_GIVEN) $(call GIVEN,RAY,--ray-address) $(call GIVEN,ENCODER,--encoder) \
		$(call GIVEN,MODEL,--model) $(call GIVEN,COLUMN,--column) $(call GIVEN,EXCLUDE,--exclude) $(BULK_ARGS) -- $(call VALUE,IMAGES)

.PHONY: serve-ray
serve-ray: $(SCALE_VENV)/.run-stamp #: STORE PORT=8000 DEVICE=cpu|cuda: the endpoints, and OpenAI's, on Ray Serve
#: TRACES=http://127.0.0.1:4318: a span for each request to an OpenTelemetry collector
	@$(SCALE) -m scale.serve --store=$(call VALUE,STORE) $(call GIVEN,PORT,--port) $(call GIVEN,DEVICE,--device) \
		$(call GIVEN,MODEL,--model) $(call GIVEN,TRACES,--traces)

.PHONY: test-scale
test-scale: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp $(DEMO_ARCHIVE) test-serve-ray #: types and tests of scale/, on clusters of two nodes here
	@$(SCALE) -m mypy -p scale -m benchmarks.bulk
	@$(SCALE) -m pytest --confcutdir tests/scale tests/scale -m "not full" $(PYTEST_ARGS)

.PHONY: test-serve-ray
test-serve-ray: $(VENV)/.dev-stamp $(SCALE_VENV)/.run-stamp #: the tests of HTTP, errors and faults, on Ray Serve
	@$(RUN) -m pytest tests/http --server ray -m "not full" $(PYTEST_ARGS)

.PHONY: test-scale-full
test-scale-full: $(VENV)/.run-stamp $(SCALE_VENV)/.dev-stamp $(DEMO_ARCHIVE) #: 20,000 pictures, a node and a writer killed; memory; all families on Ray Serve
	@$(RUN) -m pytest tests/http --server ray -m full $(PYTEST_ARGS)
	@$(SCALE) -m pytest --confcutdir tests/scale tests/scale -m full $(PYTEST_ARGS)
