"""Train a segmentor on your own classes: edit the first part, check the data, train.

    mmseg-twins check-dataset THIS_FILE
    mmseg-twins train THIS_FILE

`mmseg-twins new my_config.py` writes a copy of this file that works in any folder.
"""

# The config that this one builds on. Its model must be of the variant of `weights` and,
# if those are a segmentor's, have the same decode head.
_base_ = '../twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py'

# An image and its mask have the same name:
#   images/training/NAME.jpg      annotations/training/NAME.png
#   images/validation/NAME.jpg    annotations/validation/NAME.png
data_root = 'data/custom'

# Names in the order of their numbers in the masks. A mask is an image with one channel
# of 8 bits; its classes count from 0, and 255 marks pixels to ignore.
classes = ['road', 'building', 'sky']

# What training starts from:
#   'twins://svt-s'                  a backbone trained on ImageNet
#   'twins://upernet-svt-s-ade20k'   a segmentor of other classes
#   'work_dirs/NAME/iter_20000.pth'  a checkpoint of your own
#   None                             random weights
weights = 'twins://svt-s'

# The length of the training, 10 or more.
iterations = 20_000

# The short side of images is resized to this, and training uses random square crops of
# this size.
crop_size = 512

# Defaults that suit most data.
reduce_zero_label = False  # True: masks number classes from 1, and 0 is ignored
image_suffix = '.jpg'
mask_suffix = '.png'
batch_size = 4  # images per GPU, at least 2
learning_rate = 6e-5  # for 8 images on all GPUs; scaled to the number there are

# ---- Everything below follows from the above. ----------------------------------------

data_preprocessor = dict(size=(crop_size, crop_size), size_divisor=None)
model = dict(
    data_preprocessor=data_preprocessor,
    backbone=dict(init_cfg=None),  # the hook `StartFrom` loads the weights
    decode_head=dict(num_classes=len(classes)),
    test_cfg=dict(mode='whole'),
)
if _base_.model.get('auxiliary_head'):
    model['auxiliary_head'] = dict(num_classes=len(classes))

scale = (4 * crop_size, crop_size)  # the longest and the short side
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(crop_size, crop_size), cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=scale, keep_ratio=True),
    # After resizing: predictions are compared with masks at full size.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='mmseg_twins.SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(
                    type='Resize',
                    scale=(int(4 * crop_size * ratio), int(crop_size * ratio)),
                    keep_ratio=True,
                )
                for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]

dataset = dict(
    _delete_=True,
    type='BaseSegDataset',
    data_root=data_root,
    metainfo=dict(classes=classes),
    reduce_zero_label=reduce_zero_label,
    img_suffix=image_suffix,
    seg_map_suffix=mask_suffix,
)
train_dataloader = dict(
    batch_size=batch_size,
    dataset=dict(
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'
        ),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_prefix=dict(
            img_path='images/validation', seg_map_path='annotations/validation'
        ),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader

custom_hooks = [
    dict(type='mmseg_twins.StartFrom', checkpoint=weights),
    dict(type='mmseg_twins.CheckLabels'),
]

optim_wrapper = dict(optimizer=dict(lr=learning_rate))
auto_scale_lr = dict(enable=True, base_batch_size=8)
# A warm-up of a single iteration would leave the learning rate where it starts.
warm_up = min(1500, max(2, iterations // 10))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=warm_up),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=False,
        begin=warm_up,
        end=iterations,
    ),
]
val_interval = min(iterations, max(500, iterations // 10))
train_cfg = dict(max_iters=iterations, val_interval=val_interval)
default_hooks = dict(
    logger=dict(interval=min(50, max(1, iterations // 10))),
    checkpoint=dict(interval=val_interval, max_keep_ckpts=2, save_best='mIoU'),
)
