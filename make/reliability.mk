##@ reliability

# RUNNING=1: the server that 'make serve' started, instead of one of its own on free ports.
TARGET = $(if $(value RUNNING),--running,--store=$(call VALUE,STORE))

.PHONY: chaos
chaos: setup #: kill, stop, flood, starve and restart the deployment; a scorecard
#: STORE=folder, or RUNNING=1 for the server of 'make serve', here and in the four below; REQUESTS=2000
	@$(RUN) -m reliability chaos $(TARGET) $(call GIVEN,REQUESTS,--requests)

.PHONY: soak
soak: setup #: MINUTES=30: ordinary work with 2 % bad input; watches answers and memory
	@$(RUN) -m reliability soak $(TARGET) --minutes=$(call VALUE,MINUTES)

.PHONY: fuzz
fuzz: $(VENV)/.dev-stamp #: REQUESTS=50000 damaged ones among good ones, and MINUTES of coverage-guided fuzzing
	@$(RUN) -m reliability fuzz $(TARGET) $(call GIVEN,REQUESTS,--requests)
	@$(RUN) -m pytest tests/fuzz --fuzz-seconds $$(( 60 * GIVEN_MINUTES )) -q

.PHONY: fuzz-openapi
fuzz-openapi: $(VENV)/.dev-stamp $(CLIENTS_VENV)/.run-stamp $(SCALE_VENV)/.run-stamp #: CASES=10000 that schemathesis makes of docs/openapi.json, for each server
	@for server in torchserve ray; do $(RUN) -m pytest tests/http/test_openapi.py --server $$server --cases=$(call VALUE,CASES) -s || exit 1; done

.PHONY: attack
attack: setup $(if $(value RAY),$(SCALE_VENV)/.run-stamp) #: MINUTES=30: requests that cost as much as they can, four at once among good ones
#: PROXY=1 through the documented nginx, RAY=1 on Ray Serve
	@$(RUN) -m reliability cost $(TARGET) --minutes=$(call VALUE,MINUTES) $(if $(value PROXY),--proxy) $(if $(value RAY),--ray)

.PHONY: largest
largest: $(VENV)/.dev-stamp #: the largest pictures of every format, 16 at once; watches memory
	@$(RUN) -m reliability largest $(TARGET)

.PHONY: test-reliability
test-reliability: $(VENV)/.dev-stamp $(DEMO_ARCHIVE) #: all of these, sized for CI: minutes
	@$(RUN) -m reliability chaos --store $(DEMO_STORE) --requests 300 --faults kill,queue,loris,leave,oversize
	@$(RUN) -m reliability soak --store $(DEMO_STORE) --minutes 2
	@$(RUN) -m reliability fuzz --store $(DEMO_STORE) --requests 5000
	@$(RUN) -m reliability cost --store $(DEMO_STORE) --minutes 1 --every 4
	@$(RUN) -m pytest tests/fuzz -q
