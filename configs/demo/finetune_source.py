"""What fine-tuning starts from in docs/finetune.md: a segmentor of five classes.

The quickstart's model on streets in which only these classes are labeled:
`python tools/dataset_converters/street_scenes.py work_dirs/finetune/source_data
--training 240 --validation 24 --seed 1 --classes sky building road tree car`
"""

_base_ = ['./twins_svt_fpn_streets.py']

data_root = 'work_dirs/finetune/source_data'
classes = ['sky', 'building', 'road', 'tree', 'car']
palette = [
    [126, 184, 230],
    [178, 132, 110],
    [98, 92, 118],
    [52, 128, 74],
    [228, 78, 72],
]
max_iters = 600

model = dict(decode_head=dict(num_classes=len(classes)))
dataset = dict(data_root=data_root, metainfo=dict(classes=classes, palette=palette))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
custom_hooks = [dict(type='mmseg_twins.CheckLabels')]

param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=20, end=max_iters
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
default_hooks = dict(checkpoint=dict(interval=max_iters))
