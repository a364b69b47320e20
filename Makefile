# Two commands: `make demo` and `make test`. Both set up .venv on the first run.
