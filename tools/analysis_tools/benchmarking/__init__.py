"""Benchmark the package against mmsegmentation's built-in Twins.

A case (:mod:`.cases`) runs in one process for each implementation. The processes hold
the same weights (:mod:`.models`), run the same steps (:mod:`.session`) and take turns
(:mod:`.measurement`). Nothing is timed before their outputs agree.
"""

import mmseg_twins  # noqa: F401, before mmseg, which may not be importable without it
