PYTHON ?= python3
RUN = .venv/bin/python
Q = out/quickstart
RESUME = $(if $(wildcard $(@D)/step_*),--init_from=resume)  # a run that was stopped goes on

.PHONY: help quickstart report check test test-long clean study-distilgpt2-smaller study-distilpythia-smaller
.PHONY: study-microlm-smaller
.PHONY: study-babyllama study-babyllama-larger study-cache study-distilgpt2 study-distilpythia study-microlm study-onpolicy

help:
	@echo "make quickstart   prepare data, train a teacher, distil it, compare with no teacher (about 4 minutes on 2 cores)"
	@echo "studies of CORPUS=<folder>, each with a page in studies/, on 2 cores:"
	@echo "make study-babyllama      does it distil? (under 2 hours)"
	@echo "make study-babyllama-larger   the same with four times the text and the parameters (under 2 hours)"
	@echo "make study-cache          what does a cached teacher cost? (80 minutes)"
	@echo "make study-distilgpt2     what do six blocks of a teacher gain from it? (an hour and a half)"
	@echo "make study-distilpythia   why did the student get worse? (about an hour)"
	@echo "make study-microlm        does reverse KL hurt, and where does it stop? (an hour and a half)"
	@echo "make study-onpolicy       does its own text teach a student more? (half an hour)"
	@echo "make study-<distilgpt2, distilpythia or microlm>-smaller   its main rows at half the width (15 to 45 minutes)"
	@echo "make report       write the pages of all studies again, from their logs alone"
	@echo "make check        lint, format and the fast tests"
	@echo "make test         all tests but the long ones (about 18 minutes on 2 cores)"
	@echo "make test-long    every number of ranks, kind of kill and full disk (about 5 minutes)"
	@echo "make clean        delete the quickstart's data and runs"

.venv/done: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@

# what every commit passes; tests marked slow are left to `make test`
check: .venv/done
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pytest -n auto -m "not slow" tests

test: .venv/done
	$(RUN) -m pytest -n auto -m "not long" tests

# the whole matrix of ranks, shares and kills, of which `make test` has a part
test-long: .venv/done
	$(RUN) -m pytest -n auto -m long tests

quickstart: $(Q)/teacher/summary.json $(Q)/alone/summary.json $(Q)/forward_kl/summary.json $(Q)/reverse_kl/summary.json
	$(RUN) hellaswag.py --model=$(Q)/forward_kl --data=data/stdlib/choices.jsonl
	$(RUN) sample.py --model=$(Q)/forward_kl --prompt="def main():" --max_tokens=120
	$(RUN) plot.py --runs=$(Q)/teacher,$(Q)/alone,$(Q)/forward_kl,$(Q)/reverse_kl --out=$(Q)/loss.png --curve=choices.jsonl --chance=0.25 \
		--labels="teacher,student alone,student <- forward KL,student <- reverse KL"

data/stdlib/meta.json: | .venv/done
	$(RUN) prepare_data.py

$(Q)/teacher/summary.json: | data/stdlib/meta.json
	$(RUN) train.py config/quickstart/teacher.py $(RESUME)

# the students differ in these arguments alone: same seed, same weights at the start, same batches
$(Q)/alone/summary.json: | data/stdlib/meta.json
	$(RUN) distill.py config/quickstart/student.py --out_dir=$(@D) --weight_ce=1 --weight_kl=0 $(RESUME)

$(Q)/forward_kl/summary.json: | $(Q)/teacher/summary.json
	$(RUN) distill.py config/quickstart/student.py --out_dir=$(@D) --kl=forward $(RESUME)

$(Q)/reverse_kl/summary.json: | $(Q)/teacher/summary.json
	$(RUN) distill.py config/quickstart/student.py --out_dir=$(@D) --kl=reverse $(RESUME)

# CORPUS: folder of <domain>.train and <domain>.dev, else BabyLM of 2023 is downloaded; EVAL: folder with blimp/, lambada/
# and so on, likewise
STUDY = $(RUN) -m studies.$(@:study-%=%) --corpus=$(CORPUS)

study-babyllama study-distilgpt2 study-distilpythia: .venv/done
	$(STUDY) $(if $(EVAL),--eval_dir=$(EVAL))

study-cache study-microlm study-onpolicy: .venv/done
	$(STUDY)

study-babyllama-larger: .venv/done
	$(RUN) -m studies.babyllama.larger --corpus=$(CORPUS) $(if $(EVAL),--eval_dir=$(EVAL))

study-distilgpt2-smaller study-distilpythia-smaller study-microlm-smaller: .venv/done
	$(RUN) -m studies.smaller --study=$(@:study-%-smaller=%) --corpus=$(CORPUS)

# of every study that has published what its page is made of
report: .venv/done
	@for study in $(patsubst studies/%/logs/study.json,%,$(wildcard studies/*/logs/study.json)); do $(RUN) -m studies.$$study.report || exit 1; done

clean:
	rm -rf data/stdlib $(Q)
