"""Says what is wrong with a segmentation dataset before hours of training do.

:mod:`.datasets` finds the files that a config or two folders name, :mod:`.scan` reads
them in several processes, :mod:`.findings` draws conclusions, :mod:`.report` and
:mod:`.plot` show them; ``tools/analysis_tools/check_dataset.py`` does all of it.
"""

from __future__ import annotations

from dataset_check.datasets import Dataset, from_config, from_folders
from dataset_check.findings import Finding, find_all
from dataset_check.scan import scan

__all__ = ['Dataset', 'Finding', 'find_all', 'from_config', 'from_folders', 'scan']
