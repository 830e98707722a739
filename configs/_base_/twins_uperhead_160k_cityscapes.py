"""UPerNet on Cityscapes, 160,000 iterations; a config adds backbone and widths.

Optimizer and schedule are those of ADE20K.
"""

_base_ = ['./cityscapes_512x1024.py', './twins_uperhead_160k.py']
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    # Whole images, 1024x2048 px, are predicted window by window, two thirds apart.
    test_cfg=dict(mode='slide', crop_size=_base_.crop_size, stride=(341, 683)),
)

# 8 GPUs with 1 image each
train_dataloader = dict(batch_size=1, num_workers=2)
auto_scale_lr = dict(enable=False, base_batch_size=8)
