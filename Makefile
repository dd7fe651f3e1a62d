# Everything a person does here. Nothing is needed but python3 (3.11 or later) and make.
PYTHON ?= python3
BIN := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help run demo test coverage faults mutants pictures lint format bench lock clean setup setup-dev

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile | expand -t 16

run: setup ## set up what is missing, start PostgreSQL and gunicorn, print the URL; Ctrl-C stops all of it
	@exec $(BIN) -m tools.run

demo: setup ## run, with invented sessions to look at
	@LASTCALL_DEMO_SESSIONS=$${LASTCALL_DEMO_SESSIONS:-2000} exec $(BIN) -m tools.run

test: setup-dev ## every test: unit, PostgreSQL, several gunicorn workers, a real browser
	@exec $(BIN) -m pytest -n 2 --dist worksteal $(ARGS)

coverage: setup-dev ## every test, and which lines none of them runs; a third slower
	@exec $(BIN) -m pytest -n 2 --dist worksteal --cov --cov-report=term $(ARGS)

faults: setup-dev ## every fault, 500 revocations each, and 2,000 races of each kind; writes docs/reliability.md
	@exec $(BIN) -m tests.faults

mutants: setup-dev ## break the promise in a copy, one way at a time: a named test must turn red each time
	@exec $(BIN) -m tools.mutants

pictures: setup-dev ## take the screenshots of the README anew
	@LASTCALL_PICTURES=docs/images exec $(BIN) -m pytest tests/browser -k picture

lint: setup-dev ## ruff, mypy, the import contracts, bandit, known vulnerabilities, templates, SQL
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .
	@$(BIN) -m mypy
	@.venv/bin/lint-imports --no-logo
	@$(BIN) -m bandit -c pyproject.toml -q -r lastcall models blueprints tools app.py settings.py gunicorn.conf.py
	@$(BIN) -m djlint --check --lint --quiet templates
	@$(BIN) -m sqlfluff lint --nocolor schema.sql
	@$(BIN) -m tools.audit

format: setup-dev ## put code, templates and SQL into form
	@$(BIN) -m ruff check --fix-only --quiet .
	@$(BIN) -m ruff format --quiet .
	@$(BIN) -m djlint --reformat --quiet templates || true
	@$(BIN) -m sqlfluff fix --quiet --nocolor schema.sql

bench: setup-dev ## what a check, a receipt and a list cost, side by side; writes docs/performance.md
	@$(BIN) -m bench

lock: setup-dev ## resolve the newest versions that fit the *.in files, with hashes
	@for part in requirements requirements-dev requirements-assets bench/requirements-peers; do \
		flags=; test $$part = requirements-assets && flags=--no-deps; \
		$(BIN) -m uv pip compile --quiet --upgrade --generate-hashes --universal --python-version 3.11 $$flags \
			--no-emit-index-url --no-header --output-file $$part.txt $$part.in; \
	done

clean: ## remove everything that make has put here, but the data in instance/
	@rm -rf .venv .bench static/vendor .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

setup:
	@$(PYTHON) tools/bootstrap.py

setup-dev:
	@$(PYTHON) tools/bootstrap.py --dev
