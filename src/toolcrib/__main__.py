"""`python -m toolcrib` is the `toolcrib` command."""

from toolcrib.cli import main

if __name__ == "__main__":
    main()
