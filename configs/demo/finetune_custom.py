"""Fine-tune a segmentor on images of your own: copy this file, edit its first part.

Beforehand, `python tools/analysis_tools/check_dataset.py COPY.py` checks the data; then
`python tools/train.py COPY.py` trains, on one GPU or the CPU. As it stands here it
trains on a few of the demo's streets; docs/finetune.md shows all of it.
"""

# The config that `start_from` was trained with; one of configs/ does as well, such as
# '../twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'.
_base_ = ['./twins_svt_fpn_streets.py']

# ---- yours ---------------------------------------------------------------------------

# In the order of their numbers in the masks.
classes = ['sky', 'building', 'road', 'pavement', 'grass', 'tree', 'car', 'person']
# Their colors in pictures, red, green and blue; [] makes some up.
palette = [
    [126, 184, 230],
    [178, 132, 110],
    [98, 92, 118],
    [222, 202, 164],
    [158, 205, 96],
    [52, 128, 74],
    [228, 78, 72],
    [250, 186, 44],
]
# How masks number them: False from 0, with 255 ignored; True from 1, with 0 ignored.
reduce_zero_label = True

# An image and its mask have the same name but for the endings.
data_root = 'work_dirs/finetune/data'
train_images, train_masks = 'images/training', 'annotations/training'
val_images, val_masks = 'images/validation', 'annotations/validation'
image_ending, mask_ending = '.jpg', '.png'

# A segmentor of any classes. None trains from scratch.
start_from = 'work_dirs/finetune/source/iter_600.pth'

size = (224, 160)  # width and height that images are fitted into
crop_size = (160, 224)  # height and width of what is trained on
batch_size = 4
learning_rate = 1e-3  # for 4 images in a batch; scaled where there are more or fewer
max_iters = 300
val_interval = 25

# ---- the rest follows ----------------------------------------------------------------

# `start_from` has the backbone's weights too.
model = dict(backbone=dict(init_cfg=None), decode_head=dict(num_classes=len(classes)))
if 'auxiliary_head' in _base_.model:
    model['auxiliary_head'] = dict(num_classes=len(classes))
data_preprocessor = dict(size=None, size_divisor=32)
model['data_preprocessor'] = data_preprocessor

dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    metainfo=dict(classes=classes, palette=palette),
    reduce_zero_label=reduce_zero_label,
    data_root=data_root,
    img_suffix=image_ending,
    seg_map_suffix=mask_ending,
)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_prefix=dict(img_path=train_images, seg_map_path=train_masks),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations'),
            dict(
                type='RandomResize',
                scale=size,
                ratio_range=(0.75, 1.5),
                keep_ratio=True,
            ),
            dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PackSegInputs'),
        ],
        **dataset,
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    # Not resized: predictions are compared at full size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path=val_images, seg_map_path=val_masks),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader

custom_hooks = [
    dict(type='mmseg_twins.StartFrom', checkpoint=start_from),
    dict(type='mmseg_twins.CheckLabels'),
]

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
auto_scale_lr = dict(enable=True, base_batch_size=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=20),
    dict(
        type='PolyLR', power=0.9, eta_min=1e-6, by_epoch=False, begin=20, end=max_iters
    ),
]
train_cfg = dict(max_iters=max_iters, val_interval=val_interval)
default_hooks = dict(checkpoint=dict(interval=max_iters))
