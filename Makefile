# Every target sets up what it needs; the only requirements are Python 3.11 or 3.12 (or 3.13), git and make.
#   make quickstart   from nothing to trained, compared and plotted sparse experts
#   make test         the test suite (ARGS='-k name' chooses)        make test-slow   the long tests
#   make test-aot     compiles kernels and every paper's largest model, cut down, for TPUs and GPUs; installs compilers
#   make experiments  every sweep of experiments/ and its report: some 300 runs; run again, it fills the gaps
#   make docs         the pages of docs/ as a site, .cache/site/index.html; no network is needed to read it
#   make device       on a machine with a GPU: what is worth measuring, in eight minutes; see docs/accelerator.md
#   make env          only the virtual environment .venv             make lint, make clean
#   make constraints  resolves constraints.txt again after a change of setup.cfg; ARGS='-P jax' renews jax, ARGS=-U all
# `make quickstart` installs the core (0.9 GB). All other targets add what the tests need, TensorFlow too (3.4 GB in all).

PYTHON ?=
ARGS ?=
BIN := .venv/bin
CORE := .venv/installed
STAMP := .venv/installed-dev
SITE := .venv/installed-docs

.PHONY: env test test-slow test-aot quickstart experiments device docs lint constraints clean

env: $(STAMP)

# $(call install,REQUIREMENT) installs into .venv, with pinned versions, and says what it does. Python compiles a module
# when it imports that module first: to compile all modules of all packages would take half of the installation's time.
define install
	@{ $(BIN)/python -m pip install --no-compile --progress-bar off --disable-pip-version-check -c constraints.txt \
	     -e '$(1)' 2>&1 && touch $@; } | tee .venv/install.log | awk -v live="$$(test -t 1 && echo 1)" ' \
	  /^(Collecting|Processing)/ { n++; if (live) printf "\r  %3d packages, now %-40s", n, substr($$2, 1, 40); \
	                               else if (n % 25 == 0) print "  " n " packages"; fflush() } \
	  /^Installing coll/ { print (live ? "\n" : "") "  unpacking them ..."; fflush() }'
	@test -f $@ || { grep '^ERROR' .venv/install.log >&2; \
	  echo 'The installation failed; all it said is in .venv/install.log.$(2)' >&2; exit 1; }
endef

# The first interpreter that fits, 3.13 last: there the tests' seqio needs editdistance, which has no wheel for 3.13.
$(CORE): setup.cfg pyproject.toml constraints.txt
	@rm -f $@; $(BIN)/python -m pip --version >/dev/null 2>&1 && exit 0; rm -rf .venv; \
	for python in $(or $(PYTHON),python3.12 python3.11 python3 python3.13); do \
	  $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	    2>/dev/null || continue; \
	  echo "Making .venv with $$($$python --version), once; about 0.9 GB"; \
	  exec $$python -m venv .venv; \
	done; \
	echo 'No Python 3.11 to 3.13 with its venv module was found$(if $(PYTHON),: $(PYTHON)). Install one (on Debian and Ubuntu:' >&2; \
	echo 'apt install python3 python3-venv) or name it: make env PYTHON=/path/to/python3' >&2; exit 1
	$(call install,.)
	@echo '  done: .venv/bin/stmoe'

$(STAMP): $(CORE)
	@rm -f $@; echo 'Adding what the tests need, once; about 2.3 GB'
	$(call install,.[dev], On Python 3.13 seqio needs a C compiler (Debian and Ubuntu: apt install gcc python3-dev).)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

test-aot: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[aot]'
	$(BIN)/python -m pytest -m aot $(ARGS)

quickstart: $(CORE)
	$(BIN)/stmoe compare lm/quickstart:steps=160 --workdir runs/quickstart

# SIZE=:smoke or :large for those that have sizes, LAUNCHER=local:jobs=4 or slurm:partition=...; results of another
# size lie beside the small ones. A sweep whose runs failed does not keep the others from running.
SIZE ?=
LAUNCHER ?= local
experiments: $(STAMP)
	@failed=; for file in experiments/*/sweep.py; do folder=$${file%/sweep.py}; \
	  echo "== $$folder$(SIZE)"; \
	  $(BIN)/stmoe sweep $$file$(SIZE) --launcher $(LAUNCHER); code=$$?; \
	  case $$code in 85|130) exit $$code;; 0) ;; *) failed="$$failed $$folder";; esac; \
	  test ! -f $$folder/measure.py || $(BIN)/python -m stmoe.experiments.$${folder#*/}.measure \
	    runs/$${folder#*/}$(subst :,_,$(SIZE)) $$folder/results$(subst :,_,$(SIZE)) || failed="$$failed $$folder"; \
	  $(BIN)/stmoe sweep $$file$(SIZE) --report $$folder/results$(subst :,_,$(SIZE)) || failed="$$failed $$folder"; \
	done; \
	$(if $(SIZE),:,$(BIN)/python -m stmoe.experiments.scaling_mesh.report runs/scaling_mesh) || failed="$$failed scaling_mesh"; \
	test -z "$$failed" || { echo "not all is done:$$failed" >&2; exit 1; }

$(SITE): $(CORE)
	@rm -f $@
	$(call install,.[docs])

docs: $(SITE)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo '  .cache/site/index.html'

# Without a network there is no .venv: the machine's own Python is taken, or PYTHON. Run again, it goes on.
BUDGET ?= 480
OUT ?= experiments/kernels/device
device:
	$(or $(wildcard $(BIN)/python),$(PYTHON),python3) -m stmoe.bench.device --budget $(BUDGET) --out $(OUT) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/mypy

# One resolution for Python 3.11 and later, with markers where versions differ. Pins that still fit are kept.
constraints: $(CORE)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv
	$(BIN)/uv pip compile -q setup.cfg --extra dev --universal --python-version 3.11 --no-annotate \
	  --custom-compile-command "make constraints (ARGS='-P jax' renews a pin, ARGS=-U all)" $(ARGS) -o constraints.txt

# Everything that can be made again, but never your runs.
clean:
	rm -rf .venv .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
