# Every environment, and the one way into each of them.

VENV := .venv
RUN := $(VENV)/bin/python
SEARCH_VENV := .venv-search
SEARCH := $(SEARCH_VENV)/bin/python
SCALE_VENV := .venv-scale
SCALE := $(SCALE_VENV)/bin/python
# Of a version: .venv-torch-2.0.0
OLD_TORCH_VENV := .venv-torch-
INFINITY_VENV := .venv-infinity
OPENVINO_VENV := .venv-openvino
UPLOAD_VENV := .venv-upload
CLIENTS_VENV := .venv-clients
EXPORTERS_VENV := .venv-exporters
UV_VENV := .venv-uv

# $(call INTO,environment,lock file,what it holds,further options)
INSTALLER := requirements/install.py $(UV_VENV)/.stamp
INTO = $(UV_VENV)/bin/python -m requirements.install $(1) $(2) --what "$(3)" --python "$(PYTHON)" \
	--device $(call VALUE,DEVICE) $(4)
# For a stamp in its environment that needs a lock file first of all: $(call INSTALL,what the lock file holds,options)
define INSTALL
	@$(call INTO,$(@D),$<,$(1),$(2))
	@touch $@
endef
TORCH := --torch requirements/torch.txt

$(UV_VENV)/.stamp: requirements/uv.lock
	@$(PYTHON) -m venv --clear $(UV_VENV) || { rm -rf $(UV_VENV); echo "$(PYTHON) -m venv failed; name another Python (make PYTHON=python3.12 …), or on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@$(UV_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r $<
	@touch $@

$(VENV)/.run-stamp: requirements/run.lock requirements/java.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,transformers and TorchServe and what they need,$(TORCH))
	@$(RUN) -m serving.java >/dev/null 2>&1 || $(call INTO,$(VENV),requirements/java.lock,a Java as none of version 17 or later is on PATH) || { rm $@; exit 1; }

$(VENV)/.onnx-stamp: requirements/onnx.lock $(VENV)/.run-stamp
	$(call INSTALL,ONNX's packages)

$(VENV)/.dev-stamp: requirements/dev.lock $(VENV)/.onnx-stamp
	$(call INSTALL,the tests' packages)

$(VENV)/.bench-stamp: requirements/bench.lock $(VENV)/.dev-stamp
	$(call INSTALL,the benchmark's packages)

$(SEARCH_VENV)/.run-stamp: requirements/search.lock $(INSTALLER)
	$(call INSTALL,the search room's packages)

$(SEARCH_VENV)/.dev-stamp: requirements/search-dev.lock $(SEARCH_VENV)/.run-stamp
	$(call INSTALL,its tests' packages)

$(SCALE_VENV)/.run-stamp: requirements/scale.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,Ray and the scale room's packages,$(TORCH))

$(SCALE_VENV)/.dev-stamp: requirements/scale-dev.lock $(SCALE_VENV)/.run-stamp
	$(call INSTALL,its tests' packages)

$(INFINITY_VENV)/.run-stamp: requirements/infinity.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,infinity-emb a peer of the benchmark,--newest 3.13 $(TORCH))

$(OPENVINO_VENV)/.run-stamp: requirements/openvino.lock requirements/torch.txt $(INSTALLER)
	$(call INSTALL,OpenVINO's tools peers of the benchmark,--newest 3.13 $(TORCH))

$(OLD_TORCH_VENV)%/.run-stamp: requirements/old-torch.lock tests/old_torch/stand_ins.py $(INSTALLER)
	$(call INSTALL,PyTorch $* (up to 0.9 GB to fetch),--newest 3.11 --without-needs torch==$*)
	@$(@D)/bin/python tests/old_torch/stand_ins.py || { rm $@; exit 1; }

$(UPLOAD_VENV)/.run-stamp: requirements/upload.lock $(INSTALLER)
	$(call INSTALL,the upload clients of OpenSearch and Elasticsearch (260 MB on disk),--newest 3.13)

$(CLIENTS_VENV)/.run-stamp: requirements/clients.lock $(INSTALLER)
	$(call INSTALL,clients of OpenAI's API (330 MB on disk),--newest 3.13)

$(EXPORTERS_VENV)/.run-stamp: requirements/exporters.lock tests/old_torch/stand_ins.py $(INSTALLER)
	$(call INSTALL,the exporters of OpenSearch and Elasticsearch (2.1 GB on disk),--newest 3.13 --without-needs torch==2.7.1)
	@$(@D)/bin/python tests/old_torch/stand_ins.py || { rm $@; exit 1; }
