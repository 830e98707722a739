"""The supported stacks: sets of packages, each also an extra of that name.

OpenMMLab's own releases are used with mmcv-lite or with full mmcv, which install the
same files; the maintained fork of all three has the ``onedl-`` distributions.
``setup.py`` reads this table without importing the package. The lower bounds are
tested: see requirements/oldest.txt and requirements/tested-onedl.txt.
"""

OPENMMLAB = {'mmengine': '>=0.10.4,<1', 'mmsegmentation': '>=1.2.2,<2'}
MMCV = '>=2.1.0,<2.2.0'  # what mmsegmentation 1.2.2 asserts when it is imported

STACKS = {
    'lite': {**OPENMMLAB, 'mmcv-lite': MMCV},
    'full': {**OPENMMLAB, 'mmcv': MMCV},
    'onedl': {
        'onedl-mmengine': '>=0.10.12,<0.11',
        'onedl-mmcv': '>=2.3.6,<2.4',
        'onedl-mmsegmentation': '>=1.4.2,<1.5',
    },
}
