"""The commands, one module each; the scripts under ``tools`` are two lines each."""

from __future__ import annotations

#: The command that ``mmseg-twins`` runs in this process, such as ``train``.
command: str | None = None


def program(script: str) -> str:
    """Return the name of the program: a command of ``mmseg-twins``, or the script."""
    return script if command is None else f'mmseg-twins {command}'
