# Two commands matter: `make demo` and `make test`. Both set up all they need, outside this folder, the first time.
.PHONY: demo test lint dev mutants
.SILENT:
export PYTHONSAFEPATH = 1
export PYTHONDONTWRITEBYTECODE = 1

OUT ?= demo

demo:  ## make sounding clips, build and verify them, say where to look, and train a selector on them
	set -e; env=$$(.ci/env full); "$$env/bin/javisc" demo --out "$(OUT)"

test:  ## every test, on the built wheel's code; ARGS go to pytest
	set -e; env=$$(.ci/env full); JAVISC_SHARED="$${JAVISC_SHARED:-$(CURDIR)/../shared}" "$$env/bin/python" -m pytest -n 3 --dist worksteal $(ARGS)

mutants:  ## put faults into FILE (N of them, SEED) or, without one, those of tests/faults.toml, and see whether the tests find them
	set -e; env=$$(.ci/env full edit); "$$env/bin/python" -P tests/mutants.py $(FILE) $(if $(N),-n $(N)) $(if $(SEED),--seed $(SEED)) $(if $(TESTS),--tests "$(TESTS)")

lint:  ## ruff and mypy on the installed package
	set -e; env=$$(.ci/env full); "$$env/bin/python" -m ruff check . && "$$env/bin/python" -m ruff format --check . && \
	cd / && "$$env/bin/python" -m mypy --config-file "$(CURDIR)/pyproject.toml" --cache-dir "$$env/.mypy_cache" -p javisc

dev:  ## an editable install; prints its folder
	.ci/env full edit
