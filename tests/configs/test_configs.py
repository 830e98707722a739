"""Every config: what it builds, how it trains, what it evaluates."""

from __future__ import annotations

import importlib.util
import re
from functools import cache

import mmseg.models  # noqa: F401, registers mmsegmentation's parts
import numpy as np
import pytest
import torch
import yaml
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from PIL import Image
from torch import nn

from builders import ROOT, VARIANTS, meta_state, narrow_config, shapes_of
from mmseg_twins.checkpoints.conversion import convert_state_dict
from mmseg_twins.checkpoints.weights import SCHEME, WEIGHTS

CONFIGS = ROOT / 'configs'
ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}
# mmsegmentation 1.2.2's rates, and the parameters of its models of the same names (in
# state dicts without the buffers of batch norms).
UPERNET = {
    'pcpvt-s': (0.2, 54_080_044),
    'pcpvt-b': (0.3, 73_802_284),
    'pcpvt-l': (0.3, 90_963_500),
    'svt-s': (0.2, 53_856_300),
    'svt-b': (0.2, 87_724_460),
    'svt-l': (0.3, 132_782_892),
}
FPN = {
    'pcpvt-s': (0.2, 27_858_838),
    'pcpvt-b': (0.2, 47_581_078),
    'pcpvt-l': (0.2, 64_742_294),
    'svt-s': (0.2, 27_798_934),
    'svt-b': (0.2, 59_676_438),
    'svt-l': (0.3, 102_744_214),
}
NARROW = 'camvid/twins_svt-narrow'
# Type and number of classes.
DATASETS = {
    'ade20k': ('ADE20KDataset', 150),
    'camvid': ('BaseSegDataset', 11),
    'cityscapes': ('CityscapesDataset', 19),
}
MASK2FORMER = 'heads/twins_svt-s_mask2former_8x2_512x512_160k_ade20k'
# Images of ADE20K, which SSSegmentation's setting goes through 130 times.
IMAGES, EPOCHS = 20_210, 130

NAMES = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for path in CONFIGS.rglob('*.py')
    # The built-in's, to compare with, is tested with its twin in test_camvid.py.
    if '_base_' not in path.parts and not path.name.startswith('builtin_')
)
# Those whose backbone is none of the variants are named differently.
NAMED = [n for n in NAMES if not n.startswith(('custom/', 'demo/', NARROW))]
PUBLISHED = [name for name in NAMED if '/' not in name and '0k_' in name]
# One of each head, family and dataset takes a step always, the others with `--all`.
QUICK = [
    'camvid/twins_svt-s_uperhead_1x16_360x360_10k_camvid',
    'cityscapes/twins_pcpvt-s_fpn_fpnhead_8x2_512x1024_80k_cityscapes',
    'cityscapes/twins_svt-s_uperhead_8x1_512x1024_160k_cityscapes',
    'demo/twins_svt_fpn_streets',
    'heads/twins_pcpvt-s_pspnet_8x4_512x512_160k_ade20k',
    'heads/twins_svt-s_deeplabv3plus_8x2_512x512_160k_ade20k',
    'heads/twins_svt-s_segformer_8x2_512x512_160k_ade20k',
    'twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k',
]


def parse(name: str) -> dict[str, str]:
    return re.fullmatch(
        r'(?:\w+/)?twins_(?P<variant>\w+-\w)_(?P<head>\w+)_(?P<gpus>\d+)x(?P<images>\d+)'
        r'_(?P<height>\d+)x(?P<width>\d+)_(?P<length>\d+)(?P<unit>[ke])_(?P<data>\w+)',
        name,
    ).groupdict()


@pytest.fixture(autouse=True)
def _scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@cache
def read(name: str) -> Config:
    # mmdet, which the config of Mask2Former imports, need not be there.
    return Config.fromfile(CONFIGS / f'{name}.py', import_custom_modules=False)


@cache
def build(name: str) -> nn.Module:
    """Builds the segmentor on the meta device: shapes and names, no memory."""
    model = read(name).model
    with torch.device('meta'):
        if name == MASK2FORMER:
            return nn.ModuleDict(dict(backbone=MODELS.build(model.backbone)))
        return MODELS.build(model).eval()


def test_there_is_a_config_for_each_variant_and_setting():
    found = {(parse(n)['variant'], parse(n)['head'], parse(n)['unit']) for n in NAMED}
    for variant in VARIANTS:
        assert {
            (variant, 'uperhead', 'k'),
            (variant, 'uperhead', 'e'),
            (variant, 'fpn_fpnhead', 'k'),
        } <= found
    assert len(PUBLISHED) == 12
    assert set(QUICK) < set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_every_custom_key_matches_a_parameter(name: str):
    keys = read(name).optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    if name == MASK2FORMER:
        keys = [key for key in keys if 'backbone' in key]
    names = [name for name, _ in build(name).named_parameters()]
    assert [key for key in keys if not any(key in name for name in names)] == []


@pytest.mark.parametrize('name', NAMES)
def test_logged_configs_name_no_weights_of_a_host_that_is_gone(name: str):
    assert 'download.openmmlab.com' not in repr(read(name))


@pytest.mark.parametrize('name', PUBLISHED)
def test_segmentor_has_the_parameters_of_the_published_one(name: str):
    table = UPERNET if 'uperhead' in name else FPN
    _, parameters = table[parse(name)['variant']]
    assert sum(p.numel() for p in build(name).parameters()) == parameters


@pytest.mark.parametrize('name', NAMED)
def test_contents_are_what_the_name_says(name: str):
    cfg, says = read(name), parse(name)
    family, _, size = says['variant'].partition('-')
    images, gpus = int(says['images']), int(says['gpus'])
    crop = (int(says['height']), int(says['width']))
    backbone = cfg.model.backbone

    assert backbone.type == f'mmseg_twins.{family.upper()}'
    assert backbone.arch == ARCHS[size]
    table = FPN if 'fpn' in name else UPERNET
    rate, _ = (0.3, None) if name == MASK2FORMER else table[says['variant']]
    assert backbone.drop_path_rate == rate
    assert backbone.init_cfg.type == 'Pretrained'
    assert backbone.init_cfg.checkpoint == SCHEME + says['variant']

    assert cfg.train_dataloader.batch_size == images
    assert cfg.auto_scale_lr.base_batch_size == images * gpus
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    assert tuple(steps['RandomCrop'].crop_size) == crop
    assert tuple(cfg.model.data_preprocessor.size) == crop
    if says['unit'] == 'k':
        assert cfg.train_cfg.max_iters == 1000 * int(says['length'])
    else:
        assert cfg.train_cfg.max_iters == EPOCHS * IMAGES // (images * gpus)

    dataset, classes = DATASETS[says['data']]
    assert cfg.train_dataloader.dataset.type == dataset
    assert cfg.model.decode_head.num_classes == classes
    mode = 'slide' if says['data'] == 'cityscapes' else 'whole'
    assert cfg.model.test_cfg.mode == mode
    assert cfg.model.test_cfg.get('crop_size', crop) == crop


def without_mask2former(head: str) -> list[str]:
    is_fpn = head == 'fpn'
    return [n for n in NAMED if ('fpn' in n) == is_fpn and n != MASK2FORMER]


def decays(name: str) -> dict[str, float]:
    """Maps parameter names to the weight decay that the optimizer gives them."""
    model = build(name)
    optimizer = build_optim_wrapper(model, read(name).optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }


@pytest.mark.parametrize('name', without_mask2former('uperhead'))
def test_all_but_norms_and_position_encodings_decay(name: str):
    norms = {
        f'{prefix}.{name}'
        for prefix, module in build(name).named_modules()
        if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))
        for name, _ in module.named_parameters(recurse=False)
    }
    found = decays(name)
    encodings = {name for name in found if '.position_encodings.' in name}

    assert len(encodings) == 8  # weight and bias of a convolution in four stages
    assert found.keys() == {name for name, _ in build(name).named_parameters()}
    assert {name for name, decay in found.items() if decay == 0} == norms | encodings
    assert {decay for decay in found.values() if decay} == {0.01}


@pytest.mark.parametrize('name', without_mask2former('fpn'))
def test_everything_decays_in_semantic_fpn(name: str):
    assert set(decays(name).values()) == {1e-4}


@cache
def learning_rates(schedule: str) -> list[float]:
    """Steps the real schedulers; the rate that each iteration uses."""
    cfg = Config.fromstring(schedule, file_format='.py')
    options = {k: v for k, v in cfg.optimizer.items() if k != 'type'}
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], **options)
    schedulers = [
        PARAM_SCHEDULERS.build(scheduler, default_args={'optimizer': optimizer})
        for scheduler in cfg.param_scheduler
    ]
    optimizer.step()  # schedulers want to see one before their own
    rates = []
    for _ in range(cfg.max_iters):
        rates.append(optimizer.param_groups[0]['lr'])
        for scheduler in schedulers:
            scheduler.step()
    return rates


def rates_of(name: str) -> list[float]:
    cfg = read(name)
    assert cfg.optim_wrapper.optimizer.type == 'AdamW'
    parts = {
        'optimizer': cfg.optim_wrapper.optimizer,
        'param_scheduler': cfg.param_scheduler,
        'max_iters': cfg.train_cfg.max_iters,
    }
    return learning_rates(Config(parts).pretty_text)


@pytest.mark.parametrize('name', without_mask2former('uperhead'))
def test_the_rate_warms_up_then_falls_to_zero(name: str):
    rates = rates_of(name)
    warm_up = 500 if name.startswith('camvid/') else 1500

    assert rates[0] == pytest.approx(6e-5 * 1e-6)
    assert np.all(np.diff(rates[:warm_up]) > 0)
    assert max(rates) == rates[warm_up - 1] == pytest.approx(6e-5, rel=1e-6)
    assert np.all(np.diff(rates[warm_up:]) < 0)
    halfway = (warm_up + len(rates)) // 2
    assert rates[halfway] == pytest.approx(3e-5, rel=2e-4)  # power 1: a straight line
    assert rates[-1] == 0


@pytest.mark.parametrize('name', without_mask2former('fpn'))
def test_the_rate_of_semantic_fpn_falls_to_its_end_value(name: str):
    rates = rates_of(name)

    assert rates[0] == 1e-4
    assert np.all(np.diff(rates) < 0)
    assert rates[40_000] == pytest.approx(1e-6 + 9.9e-5 * 0.5**0.9, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-6, rel=1e-9)


def batch(num_classes: int, images: int = 2, side: int = 64) -> dict:
    samples = []
    for _ in range(images):
        shapes = dict.fromkeys(('img_shape', 'ori_shape', 'pad_shape'), (side, side))
        sample = SegDataSample(metainfo=shapes)
        labels = torch.randint(num_classes, (1, side, side))
        sample.gt_sem_seg = PixelData(data=labels)
        samples.append(sample)
    images = torch.randint(256, (images, 3, side, side), dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=samples)


def marks(name: str):
    missing = importlib.util.find_spec('mmdet') is None
    if name == MASK2FORMER:
        return pytest.mark.skipif(missing, reason='needs mmdet and full mmcv')
    return () if name in QUICK else pytest.mark.slow


@pytest.mark.parametrize('name', [pytest.param(n, marks=marks(n)) for n in NAMES])
@pytest.mark.filterwarnings('ignore:Converting a tensor')
def test_a_training_step_reaches_every_parameter(name: str):
    cfg = narrow_config(name)
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.init_weights()
    model.train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    logs = model.train_step(batch(cfg.model.decode_head.num_classes), optim_wrapper)

    losses = {name: float(value) for name, value in logs.items() if 'loss' in name}
    assert 'decode.loss_ce' in losses or name == MASK2FORMER
    assert ('aux.loss_ce' in losses) == bool(cfg.model.get('auxiliary_head'))
    assert all(0 < value < float('inf') for value in losses.values())
    same = [
        name for name, p in model.named_parameters() if torch.equal(p, before[name])
    ]
    assert same == []


def test_multi_scale_ratios_count_from_a_short_side_of_512(tmp_path):
    cfg = read(PUBLISHED[0])
    image, annotation = tmp_path / 'image.jpg', tmp_path / 'annotation.png'
    Image.new('RGB', (80, 60)).save(image)
    Image.new('L', (80, 60), color=3).save(annotation)
    pipeline = Compose([TRANSFORMS.build(step) for step in cfg.tta_pipeline])

    views = pipeline(
        {
            'img_path': str(image),
            'seg_map_path': str(annotation),
            'reduce_zero_label': True,
            'seg_fields': [],
        }
    )

    sizes = [tuple(view.shape[1:]) for view in views['inputs']]
    assert sizes[::2] == sizes[1::2]  # each as it is, and mirrored
    assert [min(size) for size in sizes[::2]] == [256, 384, 512, 640, 768, 896]
    flips = [sample.metainfo['flip'] for sample in views['data_samples']]
    assert flips == [False, True] * 6


@pytest.mark.parametrize('name', [n for n in NAMED if '/' not in n])
def test_multi_scale_evaluation_is_the_same_for_all(name: str):
    assert read(name).tta_pipeline == read(PUBLISHED[0]).tta_pipeline
    assert read(name).tta_model.type == 'mmseg_twins.SegTTAModel'


@pytest.mark.parametrize('variant', VARIANTS)
def test_sssegmentations_checkpoints_fit_their_configs(variant: str):
    """Its names and shapes, and the LayerNorms of ``configs/upernet`` there."""
    name = f'twins_{variant}_uperhead_8x2_512x512_130e_ade20k'
    converted, report = convert_state_dict(
        meta_state(shapes_of('ssseg-upernet', variant))
    )
    assert report.config() == f'{name}.py'
    model = build(name)
    model.load_state_dict(converted, strict=True, assign=True)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}
    assert read(name).train_pipeline == read(PUBLISHED[0]).train_pipeline


@cache
def model_index() -> dict[str, dict]:
    """The models that ``model-index.yml`` leads to, by name."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    files = [ROOT / path for path in index['Import']]
    models = [m for file in files for m in yaml.safe_load(file.read_text())['Models']]
    return {model['Name']: model for model in models}


@pytest.mark.parametrize('name', PUBLISHED)
def test_model_index_describes_the_config(name: str):
    cfg = read(name)
    entry = model_index()[name]
    metadata = entry['Metadata']
    variant = parse(name)['variant']

    assert entry['Config'] == f'configs/{name}.py'
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert metadata['Iterations'] == cfg.train_cfg.max_iters
    assert metadata['Pretrained Backbone'] == cfg.model.backbone.init_cfg.checkpoint
    assert metadata['Architecture'][0] == f'Twins-{variant.upper()}'
    assert f'/twins_{variant}_' in entry['Weights']
    assert all(result['Reported By'] for result in entry['Results'])


@pytest.mark.parametrize('name', WEIGHTS)
def test_published_weights_belong_to_a_config_of_the_index(name: str):
    weights = WEIGHTS[name]
    entry = model_index()[weights.config.removesuffix('.py')]

    metrics = next(
        result['Metrics']
        for result in entry['Results']
        if weights.author in result['Reported By']
    )
    assert metrics['mIoU'] == weights.miou
    assert metrics.get('mIoU(ms+flip)') == weights.miou_tta
    if weights.heads and weights.author == 'mmsegmentation':
        assert entry['Weights'] == weights.files[0].url


def test_model_index_is_valid_for_mim():
    pytest.importorskip('modelindex', reason='comes with openmim')
    from modelindex.load_model_index import load

    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()

    assert not index.check_errors
    assert set(PUBLISHED) <= {model.name for model in index.models}
