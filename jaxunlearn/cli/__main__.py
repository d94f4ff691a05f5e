"""Runs the command line as ``python -m jaxunlearn.cli``."""

import sys

from jaxunlearn.cli import main

if __name__ == "__main__":
    sys.exit(main())
