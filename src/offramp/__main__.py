"""`python -m offramp` is `offramp`."""

from offramp.cli.main import main

if __name__ == "__main__":
    main(prog_name="offramp")
