"""Semantic FPN on ADE20K, 80,000 iterations; a config adds backbone and widths."""

_base_ = ['./ade20k_512x512.py', './twins_fpnhead_80k.py']
data_preprocessor = dict(size=_base_.crop_size)
model = dict(data_preprocessor=data_preprocessor)

# 8 GPUs with 4 images each
train_dataloader = dict(batch_size=4, num_workers=4)
auto_scale_lr = dict(enable=False, base_batch_size=32)
