##@ vectors from a server

.PHONY: models
models: setup ## what can be exported: sizes, languages, licences (LANGUAGE=hu: best first)
	@$(RUN) -m export_scripts models $(call GIVEN,LANGUAGE,--language)

.PHONY: export
export: setup $(if $(filter onnx,$(value FORMAT)),$(VENV)/.onnx-stamp) ## prove and write the encoders: MODEL=name|folder TEXT_MODEL DEVICE PRECISION FORMAT
#: DEVICE=cpu|cuda PRECISION=auto|fp32|bf16|fp16|int8 MODEL=demo needs no hub; INT8=allow: auto may take int8
#: FORMAT=torchscript|djl|aoti|onnx, or a program that calls encoders its own way: aias|opensearch|elasticsearch
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts export --model=$(call VALUE,MODEL) --device=$(call VALUE,DEVICE) \
		--precision=$(call VALUE,PRECISION) --format=$(call VALUE,FORMAT) $(call GIVEN,TEXT_MODEL,--text-model) $(call GIVEN,INT8,--int8)

.PHONY: archive
archive: setup ## package what lies in model_store/ for the server (MODEL=… where it holds several)
	@$(RUN) -m export_scripts archive $(call GIVEN,MODEL,--model)

.PHONY: tune
tune: setup #: MODEL=… INT8=allow : time precisions, workers x threads and batches here; archives with the best
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts tune $(call GIVEN,MODEL,--model) --device=$(call VALUE,DEVICE) \
		$(call GIVEN,TEXT_MODEL,--text-model) $(call GIVEN,INT8,--int8)

.PHONY: verify
verify: setup $(if $(wildcard model_store/*.onnx),$(VENV)/.onnx-stamp) #: what lies in model_store/, of all formats, beside its checkpoints again
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts verify $(call GIVEN,MODEL,--model) $(call GIVEN,TEXT_MODEL,--text-model)

.PHONY: known-answers
known-answers: $(VENV)/.dev-stamp #: published weights against numbers of others; IMAGE=two_dogs_in_snow.jpg
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts known-answers $(call GIVEN,IMAGE,--image)

.PHONY: triton
triton: setup #: a model repository for NVIDIA's Triton in model_store/triton/ (MODEL DEVICE PRECISION)
	@echo "loading PyTorch and transformers"
	@$(RUN) -m export_scripts triton --store model_store --output model_store/triton \
		--device=$(call VALUE,DEVICE) \
		$(call GIVEN,MODEL,--model) $(call GIVEN,PRECISION,--precision)

.PHONY: upload-clients
upload-clients: $(UPLOAD_VENV)/.run-stamp #: .venv-upload: OpenSearch's and Elasticsearch's, for what make export wrote for them
