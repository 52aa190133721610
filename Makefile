PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
LINKS := $(addprefix build/links/heedful/,models export runtime)

# onnxruntime and torch refuse other versions with messages that do not say so.
SUPPORTED := import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit( \
	"heedful needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.11 ...")

# What `make bench` measures: LONG is a recording of some minutes, CLIPS a folder with clips.jsonl, SENTENCES and
# REFERENCES text files of English sentences and their translations into Portuguese, line by line, PICTURES a folder
# with images/ and captions.jsonl.
AUDIO ?= two-cities.wav
LONG ?=
CLIPS ?=
SENTENCES ?=
REFERENCES ?=
PICTURES ?=
RIVALS ?= build/rivals
FASTER_WHISPER := --rival-python $(RIVALS)/faster-whisper/bin/python
OPTIMUM := --rival-python $(RIVALS)/optimum/bin/python
TEXT := --rival-python $(RIVALS)/text/bin/python
BENCH_caption_examples = captioner $(PICTURES) build/captions
BENCH_caption_quality = $(PICTURES) captioner captioner-fp32
BENCH_caption_speed = $(PICTURES)/images $(OPTIMUM)
BENCH_speech_agreement = $(LONG)
BENCH_speech_floor = $(AUDIO)
BENCH_speech_memory = $(AUDIO) $(FASTER_WHISPER)
BENCH_speech_quality = $(CLIPS) $(LONG) $(FASTER_WHISPER)
BENCH_speech_requests = $(LONG)
BENCH_speech_scaling = $(AUDIO) $(LONG)
BENCH_speech_speed = $(AUDIO) --long $(LONG) $(FASTER_WHISPER)
BENCH_speech_start = $(AUDIO) $(FASTER_WHISPER)
BENCH_speech_transformers = $(AUDIO) $(OPTIMUM)
BENCH_speech_words = $(AUDIO) $(LONG) $(FASTER_WHISPER)
BENCH_text_memory = $(SENTENCES)
BENCH_text_quality = $(SENTENCES) $(REFERENCES) $(TEXT)
BENCH_text_requests = $(SENTENCES) build/opus
BENCH_text_speed = $(SENTENCES) $(TEXT)
BENCH_text_transformer = build/opus --ctranslate2-python $(RIVALS)/text/bin/python --optimum-python $(RIVALS)/optimum/bin/python
BENCHMARKS := $(basename $(notdir $(sort $(wildcard benchmarks/*.py))))

# A file of tests is run by one process: its fixtures are made once.
PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist loadfile

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test check bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{ printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv with everything the project needs

# An exact torch comes first: it takes the CPU build where one is configured, and the range
# in pyproject.toml then has nothing left to download.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install torch==2.13.0
	$(BIN)/python -m pip install --editable '.[export,test]'
	@touch $@

demo: $(INSTALLED) ## fetch small models, photos and a recording, export to int8, transcribe, translate and caption
	$(BIN)/heedful fetch whisper-tiny.en two-cities translate-en-pt cat astronaut
	@set -e; for pair in whisper-tiny.en:whisper-tiny.en-int8 translate-en-pt:translate-en-pt-int8 captioner:captioner; do \
		$(BIN)/heedful inspect $${pair#*:} >/dev/null 2>&1 \
			|| $(BIN)/heedful export $${pair%:*} $${pair#*:} --precision int8; \
	done
	$(BIN)/heedful transcribe two-cities.wav
	$(BIN)/heedful translate "It was the best of times, it was the worst of times." "How are you today?"
	$(BIN)/heedful caption cat.png astronaut.png

test: $(INSTALLED) ## run the tests
	$(PYTEST)

# mypy sees the folders as packages of `heedful` through these.
$(LINKS): build/links/heedful/%:
	@mkdir -p $(@D)
	ln -sfn ../../../$* $@

check: $(INSTALLED) $(LINKS) ## format, lint, types and tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(PYTEST)

bench: $(INSTALLED) ## run every script of benchmarks/: make bench LONG= CLIPS= SENTENCES= REFERENCES= PICTURES= (benchmarks/README.md)
	@test -n "$(LONG)" -a -n "$(CLIPS)" -a -n "$(SENTENCES)" -a -n "$(REFERENCES)" -a -n "$(PICTURES)" \
		|| { echo "make bench LONG=FILE CLIPS=FOLDER SENTENCES=FILE REFERENCES=FILE PICTURES=FOLDER: see benchmarks/README.md"; exit 2; }
	@set -e; $(foreach name,$(BENCHMARKS),echo "== $(name)"; $(BIN)/python benchmarks/$(name).py $(BENCH_$(name));)

clean: ## remove builds and caches; .venv stays
	rm -rf build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -print | xargs rm -rf
