"""Latents of all layers while a language model runs, and changes to them: `Suite.attach`."""

from groupsae.attach.session import Attached

__all__ = ["Attached"]
