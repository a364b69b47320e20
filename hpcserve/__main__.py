"""`python -m hpcserve` is the same as the `hpcserve` command."""

from hpcserve.cli.main import main

if __name__ == "__main__":
    main()
