"""What is evaluated: each SAE at each hookpoint it serves, once, however many suites share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from groupsae.partition import group_name
from groupsae.saes.suite import BoundSAE, Suite

Subject = tuple[str, str]
"""A group's name and one of its hookpoints."""

Result = TypeVar("Result")


def subjects(suites: Mapping[str, Suite]) -> dict[Subject, BoundSAE]:
    """Every (group, hookpoint) of the suites with its SAE; a group that two suites share stands once."""
    return {
        (group_name(group), hookpoint): suite[hookpoint]
        for suite in suites.values()
        for group in suite.partition.groups
        for hookpoint in group
    }


def by_suite(suites: Mapping[str, Suite], results: Mapping[Subject, Result]) -> dict[str, dict[str, Result]]:
    """Results per subject, as results per suite and hookpoint."""
    return {
        name: {
            hookpoint: results[group_name(suite.partition.group_of(hookpoint)), hookpoint]
            for hookpoint in suite.partition.hookpoints
        }
        for name, suite in suites.items()
    }
