.PHONY: serve
serve: setup ## start TorchServe on the archives; prints URL, token and three curl lines
	@$(RUN) -m serving serve

.PHONY: ready
ready: setup #: is every worker up, and does every golden input get its certified embedding?
	@$(RUN) -m serving ready

.PHONY: example
example: setup ## ask it: IMAGE=photo.jpg TEXTS="Two dogs in the snow|A cat on a table"
	@$(RUN) -m serving example $(call GIVEN,IMAGE,--image) $(call GIVEN,TEXTS,--texts)

.PHONY: stop
stop: setup ## stop it and its workers
	@$(RUN) -m serving stop

.PHONY: probe
probe: setup #: /ready and /live on PORT=8083 for load balancers and Kubernetes, no token needed
	@$(RUN) -m serving probe $(call GIVEN,PORT,--port)

.PHONY: heic
heic: setup $(SEARCH_VENV)/.run-stamp #: HEIC, as iPhones write it: its decoder (8 MB) for server, search and scale
	@for environment in $(VENV) $(SEARCH_VENV) $(wildcard $(SCALE_VENV)); do \
		$(call INTO,$$environment,requirements/heic.lock,pillow-heif); done
