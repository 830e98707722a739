"""Writes street scenes as files, in the folder layout of ADE20K."""

from __future__ import annotations

from streets.folder import write_scenes

__all__ = ['write_scenes']
