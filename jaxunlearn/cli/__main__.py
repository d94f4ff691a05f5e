"""Runs the command line as ``python -m jaxunlearn.cli``."""

import sys

from jaxunlearn.cli import main

sys.exit(main())
