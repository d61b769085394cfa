# `make` alone shows what most people need, `make help-all` the rest. Each room's targets are in make/.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# `make export archive serve` is an order, also where MAKEFLAGS has -j.
.NOTPARALLEL:
# Where it is set (in many containers), each process compiles PyTorch, transformers or Ray anew: 1.5 to 6 s, ten times
# for a Ray cluster. The environments are make's own, and what it writes there goes with them.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
MODEL ?= clip-ViT-B-32
TEXT_MODEL ?=
DEVICE ?= cpu
PRECISION ?= auto
FORMAT ?= torchscript
STORE ?= model_store
MINUTES ?= 30
CASES ?= 10000

# What a user may hand in; defaults stand above, for ?= takes what is unexported here for defined. Values reach the
# recipes as variables of the environment, just as they were typed: make would expand a $, and the shell quotes and
# backticks, if a recipe named them itself.
ARGUMENTS := BENCH_STORE CAMERA CAPTIONS CASES COLUMN DEVICE ENCODER EXCLUDE FOR FORGET FORMAT IMAGE IMAGES JSON KIND \
	LANGUAGE LEAST LIMIT MINUTES MODEL OUTPUT PAGE PART PLACE PORT PRECISION RAY REQUESTS ROUNDS ROWS SECONDS SHEET \
	SIMILAR SINCE STORE TABLE TEXT TEXTS TEXT_MODEL TRACES UNTIL WATCH WHEELS
unexport $(ARGUMENTS)
$(foreach name,$(ARGUMENTS),$(eval export GIVEN_$(name) = $$(value $(name))))
# One of them as a word of the shell; no shell expands a ~ within quotes.
VALUE = "$${GIVEN_$(1)/\#\~\//$$HOME/}"
# An option with its value; without a value on the command line (or in the environment) the program's default holds.
GIVEN = $(if $(filter-out file default undefined,$(origin $(1))),$(2)=$(call VALUE,$(1)))
# Says what is missing, and how it is written.
NEEDED = test -n $(call VALUE,$(1)) || { echo "make $@: $(1) is missing: make $@ $(1)=$(2)" >&2; exit 2; }

# What a target is for stands behind ## where `make help` shows it, behind #: where only `make help-all` does, as a line
# of its own, below a target, too.
HELP = awk 'BEGIN {printf "clipserve: a CLIP checkpoint pair to TorchScript, and over HTTP\n"} \
	/^\#\#@ / {room = substr($$0, 5)} \
	/^[a-z-]+:.* $(1) / { \
		name = $$0; sub(/:.*/, "", name); sub(/^.* $(1) /, ""); \
		if (room != "") {printf "\n%s\n", room; room = ""} \
		printf "  make %-$(2)s  %s\n", name, $$0} \
	/^$(1) / {printf "%$(2)s         %s\n", "", substr($$0, 4)}' $(MAKEFILE_LIST)

.PHONY: help
help:
	@$(call HELP,##,8)
	@printf '\nmake help-all shows the rest: settings, tests, proofs, benchmarks, other formats and servers.\n'

.PHONY: help-all
help-all:
	@$(call HELP,#[#:],16)

include make/environments.mk
# In the order in which help names them.
include $(addprefix make/,demo.mk export.mk serve.mk search.mk scale.mk reliability.mk benchmarks.mk work.mk)
