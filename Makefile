# make demo        train, test and draw Mask R-CNN with GN+WS, one image per step
# make demo-seg    the same for DeepLabv3
# make data        get real images: nuclei and camvid; make demo DATA=nuclei, make demo-seg DATA=camvid: the demos on them
# make test        lint, then all tests; fails below 95% coverage
# make test-peers  run the tests of torch, mmengine and mmseg with Weight Standardization in every convolution
# make sweep       convert all stock configs and check them by running the models: docs/sweep.csv, 20 to 50 min
# make bench       measure the cost of Weight Standardization: work_dirs/benchmark
# make study       compare the normalization layers on real images (make data), for hours: docs/results.md; DATA=digits: on
#                  generated ones, 2.5 h at most: docs/results_digits.md; DATA=transplant: what to start from, for hours;
#                  QUICK=1: a short form, into work_dirs/study
# make tutorial    run docs/tutorial.ipynb and keep its outputs; after a change of its code
# make trust       test interruption, low precision, fuzzing, pinned versions, and all tests in random order with free seeds:
#                  docs/trust.md, 1.5 h; NAME=fuzz: one part
# make docs        build the site of these pages: work_dirs/site/index.html
# make lock        write requirements/*.lock, with hashes; run it after a change of requirements/*.txt
# make setup       make .venv; STACK=openmmlab makes .venv-openmmlab with the upstream distributions; so do guide, prebuilt,
#                  oldest and newest, the environments of `make matrix`
# make matrix      run all tests in each environment, old and new: docs/compatibility.md; ENV=guide: one environment again

PYTHON ?= python3
STACK ?= onedl
DATA := digits
VENV := .venv$(if $(filter-out onedl,$(STACK)),-$(STACK))
RUN := $(VENV)/bin/python

COMPILE := ../work_dirs/audit/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock'

.PHONY: setup matrix lock docs data demo demo-seg sweep bench study tutorial trust test test-peers lint

setup:
	@$(PYTHON) requirements/setup_env.py $(VENV) $(STACK)

matrix:  # ENV of the command line only: shells have a variable with this name
	@$(PYTHON) requirements/matrix.py $(if $(filter command%,$(origin ENV)),$(ENV))

demo: NETWORK := mask_rcnn_r18
demo-seg: NETWORK := deeplabv3_r18
demo demo-seg: CONFIG = configs/$(DATA:digits=demo)/$(NETWORK)_gnws_$(DATA).py
demo demo-seg: OUT = work_dirs/$@$(addprefix -,$(filter-out digits,$(DATA)))
demo demo-seg: setup
	$(RUN) $(if $(filter digits,$(DATA)),tools/make_digits.py,tools/get_data.py $(DATA))
	$(RUN) tools/train.py $(CONFIG) --work-dir $(OUT) --resume
	$(RUN) tools/test.py $(CONFIG) "$$(cat $(OUT)/last_checkpoint)" --work-dir $(OUT) --show-dir $(CURDIR)/$(OUT)/pictures
	$(RUN) tools/summarize.py $(OUT)

data: setup
	$(RUN) tools/get_data.py

sweep: setup
	$(RUN) tools/sweep.py docs/sweep.csv

test: setup lint
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile --cov --cov-fail-under=95

test-peers: setup
	$(RUN) tests/peers/run.py

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m mypy
	$(VENV)/bin/vermin --quiet --violations --target=3.8- configs examples mmws requirements setup.py tests tools
	$(VENV)/bin/lint-imports --config pyproject.toml --no-logo

lock:
	$(PYTHON) -m venv work_dirs/audit
	work_dirs/audit/bin/pip install -q --require-hashes -r requirements/audit.lock
	cd requirements && for name in common onedl openmmlab torch; do $(COMPILE) --no-deps $$name.txt -o $$name.lock || exit 1; done
	cd requirements && $(COMPILE) audit.txt -o audit.lock

docs: setup
	$(RUN) -m sphinx -W --keep-going -q docs work_dirs/site

bench: setup
	$(RUN) tools/benchmark.py

study: STUDY = $(if $(filter command%,$(origin DATA)),$(DATA),study)
study: RESULTS = results$(addprefix _,$(filter-out study,$(STUDY)))
study: setup
	$(RUN) tools/study.py configs/study/$(STUDY).yaml $(if $(QUICK),--quick --out work_dirs/study/$(RESULTS),--out docs/$(RESULTS))

tutorial: setup
	$(RUN) -m tests.helpers.notebook

trust: setup
	$(RUN) tests/trust/run.py $(NAME)
