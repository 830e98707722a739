"""What is raised where a benchmark cannot go on."""

from __future__ import annotations


class BenchmarkError(RuntimeError):
    """Something cannot be measured or compared; the message is one sentence."""


class DisagreementError(BenchmarkError):
    """Two implementations do not compute the same."""
