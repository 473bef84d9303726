# make demo    train, test and show Mask R-CNN with GN+WS at one image a step
# make test    everything that can go wrong
# make setup   the environment of both; STACK=openmmlab takes the upstream distributions

PYTHON ?= python3
STACK ?= onedl
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))
RUN := $(VENV)/bin/python
DEMO := work_dirs/demo
DEMO_CONFIG := configs/demo/mask_rcnn_r18_gnws_digits.py

.PHONY: setup demo test lint

setup:
	@$(PYTHON) requirements/setup_env.py $(VENV) $(STACK)

demo: setup
	$(RUN) tools/make_digits.py
	$(RUN) tools/train.py $(DEMO_CONFIG) --work-dir $(DEMO) --resume
	$(RUN) tools/test.py $(DEMO_CONFIG) "$$(cat $(DEMO)/last_checkpoint)" --work-dir $(DEMO) \
		--show-dir $(abspath $(DEMO))/pictures
	$(RUN) tools/summarize.py $(DEMO)

test: setup lint
	$(RUN) -m pytest

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m mypy
