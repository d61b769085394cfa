##@ work on it

# Files of tests side by side, since each test has one thread; a file's own fixtures are made once. Four on two cores,
# for many wait for a server; in the order of tests/conftest.py.
SIDE_BY_SIDE := --dist loadfile --no-loadscope-reorder --numprocesses

.PHONY: setup
setup: $(VENV)/.run-stamp #: create .venv with pinned versions, and a Java where there is none

.PHONY: test
test: $(VENV)/.bench-stamp #: every test that needs no GPU, a real TorchServe included
	@$(RUN) -m pytest -m "not full" $(SIDE_BY_SIDE) 4 $(PYTEST_ARGS)

.PHONY: test-full
test-full: $(VENV)/.dev-stamp #: the whole flow with full-size checkpoints (random weights): half an hour, 20 GB of disk, 10 of memory
	@$(RUN) -m pytest -m full tests/full tests/export_scripts tests/demo tests/http $(SIDE_BY_SIDE) 2 $(PYTEST_ARGS)

.PHONY: test-old-torch
test-old-torch: $(VENV)/.dev-stamp $(patsubst %,$(OLD_TORCH_VENV)%/.run-stamp,1.13.1 2.0.0) #: today's encoder files in the oldest PyTorch that opens them, and the AIAS SDK's in its own
	@$(RUN) -m pytest tests/old_torch $(PYTEST_ARGS)

.PHONY: test-other-torches
test-other-torches: $(patsubst %,$(OLD_TORCH_VENV)%/.run-stamp,2.5.1 2.7.1) test-old-torch #: the same, and OpenSearch's and Elasticsearch's

.PHONY: test-upload
test-upload: $(VENV)/.dev-stamp $(UPLOAD_VENV)/.run-stamp #: OpenSearch's and Elasticsearch's clients take what is exported for them
	@$(RUN) -m pytest tests/upload -m "not full" $(PYTEST_ARGS)

.PHONY: test-clients
test-clients: $(VENV)/.dev-stamp $(CLIENTS_VENV)/.run-stamp #: openai, litellm, LangChain, LlamaIndex, infinity's, curl, JavaScript, schemathesis: each asks the server
	@$(RUN) -m pytest tests/http/test_clients.py tests/http/test_openapi.py $(PYTEST_ARGS)

.PHONY: test-exporters
test-exporters: $(VENV)/.dev-stamp $(EXPORTERS_VENV)/.run-stamp #: what their own exporters make of the same checkpoints, beside ours
	@$(RUN) -m pytest tests/upload -m full $(PYTEST_ARGS)

.PHONY: check
check: $(VENV)/.dev-stamp #: formatting, lint and types
	@$(RUN) -m ruff format --check .
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

.PHONY: openapi
openapi: setup #: docs/openapi.json from the endpoints' tables
	@$(RUN) -m clipserve.openapi > docs/openapi.json

.PHONY: lock
lock: $(VENV)/.dev-stamp #: resolve the pinned versions anew
	@$(RUN) requirements/lock.py

.PHONY: sbom
sbom: setup $(UV_VENV)/.stamp #: sbom.json: what .venv holds, as CycloneDX, for a scanner of vulnerabilities
	@echo "asking cyclonedx-py what $(VENV) holds"
	@$(UV_VENV)/bin/uv tool run --quiet --from cyclonedx-bom==7.5.0 cyclonedx-py environment --output-reproducible \
		--short-PURLs --of JSON -o sbom.json $(RUN)
	@echo "sbom.json"

.PHONY: clean
clean: #: remove what was built (not .venv, not the exported encoders)
	@rm -rf $(DEMO_STORE) .mypy_cache .ruff_cache .pytest_cache .hypothesis logs
