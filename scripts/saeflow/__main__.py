"""`python -m saeflow` is the command `saeflow`."""

from saeflow.command_line import main

if __name__ == "__main__":
    raise SystemExit(main())
