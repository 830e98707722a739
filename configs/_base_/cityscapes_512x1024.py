"""What every Cityscapes config shares: data, run time, the Twins package."""

_base_ = [
    'mmseg::_base_/datasets/cityscapes.py',
    'mmseg::_base_/default_runtime.py',
]
custom_imports = dict(imports=['mmseg_twins'], allow_failed_imports=False)
tta_model = dict(type='mmseg_twins.SegTTAModel')
