"""Find what is wrong with a segmentation dataset before hours of training do.

:mod:`.datasets` finds and reads the files of a config or of two folders,
:mod:`.findings` draws conclusions, :mod:`.report` shows them.
"""

import mmseg_twins  # noqa: F401, before mmseg, which may not be importable without it
