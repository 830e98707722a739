"""What `finetune_custom.py` starts from in the demo: a segmentor of five classes.

The quickstart's model on streets of which sky, building, road, tree and car are
scored, and all else is ignored.
"""

_base_ = ['./twins_svt_fpn_streets.py']

data_root = 'work_dirs/finetune/source_data'
classes = ('sky', 'building', 'road', 'tree', 'car')
max_iters = 600

model = dict(decode_head=dict(num_classes=len(classes)))
# A part of a dataset's classes, in an order of one's own: the others are ignored.
dataset = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader

param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=False, begin=20, end=max_iters
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters // 4)
default_hooks = dict(checkpoint=dict(interval=max_iters))
