"""Find what is wrong with a segmentation dataset before hours of training do.

:mod:`.datasets` finds and reads the files of a config or of two folders,
:mod:`.findings` draws conclusions, :mod:`.report` shows them.
"""
