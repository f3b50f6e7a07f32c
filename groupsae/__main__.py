"""`python -m groupsae` is the command line."""

import sys

from groupsae.cli import main

sys.exit(main())
