"""Lets tests import the helpers beside them, and those of the reliability tests."""

import sys
from pathlib import Path

for folder in (".", "../reliability", "../evaluation", "../training"):
    sys.path.insert(0, str((Path(__file__).parent / folder).resolve()))
