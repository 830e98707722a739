"""Measures the package side by side with mmsegmentation's built-in Twins.

``tools/analysis_tools/benchmark.py`` is its command line. A case (:mod:`.cases`) is measured by
processes of their own (:mod:`.worker`), one for each implementation, which hold the
same weights (:mod:`.models`), do the same steps (:mod:`.steps`) and take turns
(:mod:`.measurement`). Nothing is timed before their outputs agree (:mod:`.agreement`).
"""

from __future__ import annotations

from benchmarking.cases import Case, expand
from benchmarking.errors import BenchmarkError
from benchmarking.measurement import measure

__all__ = ['BenchmarkError', 'Case', 'expand', 'measure']
