"""`python -m saeflow.config STUDY` prints the name of a study that can be run, or what is wrong with it."""

import sys

from saeflow.config.reading import load
from saeflow.config.sections import ConfigError


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python -m saeflow.config STUDY")
    try:
        sys.stdout.write(load(sys.argv[1]).study + "\n")
    except ConfigError as error:
        sys.exit(f"The study cannot be run as it is written:\n{error}")


if __name__ == "__main__":
    main()
