"""`python -m sparseinfer`: the same as the `sparseinfer` command."""

from sparseinfer.cli import main

if __name__ == "__main__":
    main()
