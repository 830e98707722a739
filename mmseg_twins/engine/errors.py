"""What is raised where a training cannot begin or go on as the config asks."""

from __future__ import annotations

from ..errors import SettingError


class FinetuningError(SettingError):
    """A checkpoint, or labels, that do not fit the model; one sentence says how."""
