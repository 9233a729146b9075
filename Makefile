.DEFAULT_GOAL := help
BIN := .venv/bin
# Where this is set, as in most container images, each process compiles all it imports once more.
export PYTHONDONTWRITEBYTECODE :=

help: ## show this list
	@echo 'First: make up. After an edit in nbs/: make check; before sharing it: make test.'
	@echo
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'One test:       .venv/bin/python -m pytest tests/state/test_store.py -k identity'
	@echo 'One notebook:   .venv/bin/python -m pytest --nbval nbs/04_chunk.ipynb'
	@echo 'Another Python: make up PYTHON=/path/to/python3   (3.11, 3.12 or 3.13; kept from then on)'
	@echo 'Another port:   SUPPORT_RAG_PORT=8001 make up     (0 takes a free one)'
	@echo 'Elsewhere:      SUPPORT_RAG_HOME=/path make up    (data, secrets and logs)'

up: purpose = up
up: environment ## start everything, load the sample help centre, answer a question (Ctrl-C stops)
	@$(BIN)/support-rag up

down: purpose = kept
down: environment ## stop what `make up` started, from another terminal
	@$(BIN)/support-rag down

reset: purpose = kept
reset: environment ## stop, and delete the local databases; asks first (YES=1 does not)
	@$(BIN)/support-rag reset $(if $(YES),--yes)

doctor: environment ## say what is wrong with this installation
	@$(BIN)/support-rag doctor

check: environment ## export what changed since main and run what that can break; a minute
	@$(BIN)/python .ci/check.py $(if $(SECONDS),--seconds $(SECONDS))

test: environment browser lint notebooks gate ## run every check: lint, types, notebooks, retrieval, tests
	@$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests

lint: environment ## style and types only
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

notebooks: environment ## run every notebook and compare its outputs
	@$(BIN)/python -m pytest --nbval -n 3 --dist loadfile nbs
	@SUPPORT_RAG_EVAL=reduced $(BIN)/python -m pytest --nbval-lax -n 3 --dist loadfile evals

gate: environment ## fail when retrieval is significantly worse than the committed reference
	@$(BIN)/support-rag eval gate

export: environment ## after editing notebooks: clean them and export the package
	@$(BIN)/python .ci/exportable.py nbs
	@$(BIN)/ruff check --fix -q nbs evals && $(BIN)/ruff format -q nbs evals
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-clean --fname evals && $(BIN)/nbdev-export

docs: environment ## build the documentation into _docs/: open _docs/index.html
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f docs/mkdocs.yml

openapi: environment ## after a change of a route: write docs/openapi.json and the client made from it
	@$(BIN)/python docs/openapi.py

environment: ## make .venv from the lock
	@PYTHON='$(PYTHON)' .ci/environment $(purpose)

browser:
	@.ci/browser

lock: environment ## resolve the newest releases into requirements*.txt
	@$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-emit-index-url -o requirements.txt
	@$(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 -c requirements.txt \
	  --generate-hashes --no-header --no-emit-index-url -o requirements-service.txt
	@printf 'uv\nhatchling\neditables\n' | $(BIN)/uv pip compile -q - --universal --python-version 3.11 \
	  -c requirements.txt --generate-hashes --no-header --no-emit-index-url -o .ci/build.txt

.PHONY: help up down reset doctor check test lint notebooks gate export docs openapi environment browser lock
