.DEFAULT_GOAL := help
BIN := .venv/bin

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

environment: ## make .venv from the lock
	@.ci/environment

up: environment ## start everything, load the sample help centre, answer a question (Ctrl-C stops)
	@$(BIN)/support-rag up

down: environment ## stop what `make up` started, from another terminal
	@$(BIN)/support-rag down

reset: environment ## stop, and delete the local databases
	@$(BIN)/support-rag reset

test: environment browser lint notebooks ## run every check: lint, types, notebooks, tests
	@$(BIN)/python -m pytest tests

lint: environment
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

notebooks: environment
	@$(BIN)/python -m pytest --nbval nbs
	@SUPPORT_RAG_EVAL=reduced $(BIN)/python -m pytest --nbval-lax evals

browser:
	@.ci/browser

export: environment ## after editing notebooks: clean them and export the package
	@$(BIN)/ruff check --fix -q nbs evals && $(BIN)/ruff format -q nbs evals
	@$(BIN)/nbdev-clean && $(BIN)/nbdev-clean --fname evals && $(BIN)/nbdev-export

lock: environment ## resolve the newest releases into requirements*.txt
	@$(BIN)/uv pip compile -q pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --generate-hashes --no-header --no-emit-index-url -o requirements.txt
	@$(BIN)/uv pip compile -q pyproject.toml --universal --python-version 3.11 -c requirements.txt \
	  --generate-hashes --no-header --no-emit-index-url -o requirements-service.txt
	@echo 'uv' | $(BIN)/uv pip compile -q - --universal --generate-hashes --no-header --upgrade -o .ci/uv.txt

.PHONY: help environment up down reset test lint notebooks browser export lock
