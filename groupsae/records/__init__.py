"""The run directory: where each stage's results lie, and what is done, missing or out of date."""

from groupsae.records.environment import environment, version_of
from groupsae.records.run_directory import RunDirectory
from groupsae.records.stages import MAY_CHANGE, STAGE_NAMES, STAGES, Stage

__all__ = ["MAY_CHANGE", "STAGES", "STAGE_NAMES", "RunDirectory", "Stage", "environment", "version_of"]
