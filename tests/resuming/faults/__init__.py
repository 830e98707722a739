"""Kills trainings on purpose, to see that they can be resumed.

Importing it, as ``custom_imports`` does, registers :class:`.Kill`, a hook that ends
its own process at a moment that is given; :mod:`.trial` is what
``tests/resuming/kill_and_resume.py`` does. It needs signals and limits of Unix.
"""

from __future__ import annotations

from faults.kill import MOMENTS, Kill

__all__ = ['MOMENTS', 'Kill']
