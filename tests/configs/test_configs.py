"""The ADE20K recipes: what they build, how they train, what they evaluate."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import yaml
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from mmseg.registry import MODELS, TRANSFORMS
from PIL import Image
from torch import nn

CONFIGS = Path(__file__).parents[2] / 'configs'
FAMILIES = {'pcpvt': 'PCPVT', 'svt': 'SVT'}
ARCHS = {'s': 'small', 'b': 'base', 'l': 'large'}


class Recipe(NamedTuple):
    """What is known of a recipe without reading it.

    ``parameters`` counts those of mmsegmentation 1.2.2's own model of the same name
    (its state dict without the buffers of the batch norms); ``drop_path_rate`` is
    what its config says.
    """

    name: str
    parameters: int
    drop_path_rate: float

    @property
    def family(self) -> str:
        return self.name.split('_')[1].split('-')[0]

    @property
    def arch(self) -> str:
        return ARCHS[self.name.split('_')[1].split('-')[1]]

    @property
    def is_upernet(self) -> bool:
        return 'uperhead' in self.name


RECIPES = [
    Recipe('twins_pcpvt-s_uperhead_8x4_512x512_160k_ade20k', 54_080_044, 0.2),
    Recipe('twins_pcpvt-b_uperhead_8x2_512x512_160k_ade20k', 73_802_284, 0.3),
    Recipe('twins_pcpvt-l_uperhead_8x2_512x512_160k_ade20k', 90_963_500, 0.3),
    Recipe('twins_svt-s_uperhead_8x2_512x512_160k_ade20k', 53_856_300, 0.2),
    Recipe('twins_svt-b_uperhead_8x2_512x512_160k_ade20k', 87_724_460, 0.2),
    Recipe('twins_svt-l_uperhead_8x2_512x512_160k_ade20k', 132_782_892, 0.3),
    Recipe('twins_pcpvt-s_fpn_fpnhead_8x4_512x512_80k_ade20k', 27_858_838, 0.2),
    Recipe('twins_pcpvt-b_fpn_fpnhead_8x4_512x512_80k_ade20k', 47_581_078, 0.2),
    Recipe('twins_pcpvt-l_fpn_fpnhead_8x4_512x512_80k_ade20k', 64_742_294, 0.2),
    Recipe('twins_svt-s_fpn_fpnhead_8x4_512x512_80k_ade20k', 27_798_934, 0.2),
    Recipe('twins_svt-b_fpn_fpnhead_8x4_512x512_80k_ade20k', 59_676_438, 0.2),
    Recipe('twins_svt-l_fpn_fpnhead_8x4_512x512_80k_ade20k', 102_744_214, 0.3),
]
UPERNET = [recipe for recipe in RECIPES if recipe.is_upernet]
FPN = [recipe for recipe in RECIPES if not recipe.is_upernet]

every_recipe = pytest.mark.parametrize('recipe', RECIPES, ids=lambda r: r.name)
every_upernet = pytest.mark.parametrize('recipe', UPERNET, ids=lambda r: r.name)
every_fpn = pytest.mark.parametrize('recipe', FPN, ids=lambda r: r.name)


@cache
def read(recipe: Recipe) -> Config:
    return Config.fromfile(CONFIGS / f'{recipe.name}.py')


@cache
def build(recipe: Recipe) -> nn.Module:
    """Builds the segmentor on the meta device: shapes and names, no memory."""
    cfg = read(recipe)
    with torch.device('meta'):
        return MODELS.build(cfg.model).eval()


def test_every_recipe_is_known_here():
    files = {path.stem for path in CONFIGS.glob('twins_*0k_ade20k.py')}

    assert files == {recipe.name for recipe in RECIPES}


@every_recipe
def test_segmentor_has_the_parameters_of_the_published_one(recipe: Recipe):
    model = build(recipe)

    assert sum(p.numel() for p in model.parameters()) == recipe.parameters


@every_recipe
def test_heads_take_the_maps_of_the_backbone(recipe: Recipe):
    model = build(recipe)
    with torch.no_grad():
        maps = model.extract_feat(torch.empty(1, 3, 64, 96, device='meta'))
        logits = [model.decode_head(maps)]
        if recipe.is_upernet:
            logits.append(model.auxiliary_head(maps))

    assert [tuple(x.shape) for x in logits] == [(1, 150, 16, 24), (1, 150, 4, 6)][
        : len(logits)
    ]


@every_recipe
def test_contents_are_what_the_name_says(recipe: Recipe):
    cfg = read(recipe)
    gpus, per_gpu = map(int, re.search(r'_(\d+)x(\d+)_', recipe.name).groups())
    side = int(re.search(r'_512x(\d+)_', recipe.name).group(1))
    iterations = 1000 * int(re.search(r'_(\d+)k_', recipe.name).group(1))

    assert cfg.model.backbone.type == f'mmseg_twins.{FAMILIES[recipe.family]}'
    assert cfg.model.backbone.arch == recipe.arch
    assert cfg.model.backbone.drop_path_rate == recipe.drop_path_rate
    assert cfg.train_dataloader.batch_size == per_gpu
    assert cfg.auto_scale_lr.base_batch_size == gpus * per_gpu
    assert cfg.model.data_preprocessor.size == (512, side)
    assert cfg.train_cfg.max_iters == iterations


@every_recipe
def test_pretrained_weights_are_those_of_the_backbone(recipe: Recipe):
    init_cfg = read(recipe).model.backbone.init_cfg
    family = {'pcpvt': 'pcpvt', 'svt': 'alt_gvt'}[recipe.family]

    assert init_cfg.type == 'Pretrained'
    assert re.fullmatch(
        'https://download.openmmlab.com/mmsegmentation/v0.5/pretrain/twins/'
        rf'{family}_{recipe.arch}_20220308-[0-9a-f]{{8}}\.pth',
        init_cfg.checkpoint,
    )


def test_recipes_of_a_backbone_share_its_pretrained_weights():
    files = {}
    for recipe in RECIPES:
        backbone = read(recipe).model.backbone
        files.setdefault((recipe.family, recipe.arch), set()).add(
            backbone.init_cfg.checkpoint
        )

    assert len(files) == 6
    assert all(len(urls) == 1 for urls in files.values())


@every_recipe
def test_every_custom_key_matches_a_parameter(recipe: Recipe):
    keys = read(recipe).optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    names = [name for name, _ in build(recipe).named_parameters()]

    unmatched = [key for key in keys if not any(key in name for name in names)]
    assert bool(keys) == recipe.is_upernet
    assert unmatched == []


def decays(recipe: Recipe) -> dict[str, float]:
    """Maps parameter names to the weight decay that the optimizer gives them."""
    model = build(recipe)
    optimizer = build_optim_wrapper(model, read(recipe).optim_wrapper).optimizer
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: group['weight_decay']
        for group in optimizer.param_groups
        for parameter in group['params']
    }


@every_upernet
def test_upernet_decays_all_but_norms_and_position_encodings(recipe: Recipe):
    model = build(recipe)
    norms = {
        f'{prefix}.{name}'
        for prefix, module in model.named_modules()
        if isinstance(module, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))
        for name, _ in module.named_parameters(recurse=False)
    }
    encodings = {
        name for name, _ in model.named_parameters() if '.position_encodings.' in name
    }
    found = decays(recipe)

    assert 'decode_head.bottleneck.bn.weight' in norms
    assert len(encodings) == 8  # weight and bias of a convolution in four stages
    assert found.keys() == {name for name, _ in model.named_parameters()}
    assert {name for name, decay in found.items() if decay == 0} == norms | encodings
    assert {decay for decay in found.values() if decay} == {0.01}


@every_fpn
def test_fpn_decays_everything(recipe: Recipe):
    assert set(decays(recipe).values()) == {1e-4}


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


def schedule_of(recipe: Recipe) -> str:
    cfg = read(recipe)
    parts = {
        'optimizer': cfg.optim_wrapper.optimizer,
        'param_scheduler': cfg.param_scheduler,
        'max_iters': cfg.train_cfg.max_iters,
    }
    return Config(parts).pretty_text


@every_upernet
def test_upernet_rate_warms_up_then_falls_to_zero(recipe: Recipe):
    rates = learning_rates(schedule_of(recipe))

    assert len(rates) == 160_000
    assert rates[0] == pytest.approx(6e-5 * 1e-6)
    assert np.all(np.diff(rates[:1500]) > 0)
    assert rates[1499] == pytest.approx(6e-5, rel=1e-6)
    assert max(rates) == pytest.approx(6e-5, rel=1e-6)
    assert np.all(np.diff(rates[1500:]) < 0)
    halfway = 1500 + 158_500 // 2
    assert rates[halfway] == pytest.approx(3e-5, rel=1e-4)  # power 1: a straight line
    assert rates[-1] == 0


@every_fpn
def test_fpn_rate_falls_to_its_end_value(recipe: Recipe):
    rates = learning_rates(schedule_of(recipe))

    assert len(rates) == 80_000
    assert rates[0] == 1e-4
    assert np.all(np.diff(rates) < 0)
    assert rates[40_000] == pytest.approx(1e-6 + 9.9e-5 * 0.5**0.9, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-6, rel=1e-9)


@every_recipe
def test_multi_scale_ratios_count_from_a_short_side_of_512(
    recipe: Recipe, tmp_path: Path
):
    cfg = read(recipe)
    image, annotation = tmp_path / 'image.jpg', tmp_path / 'annotation.png'
    Image.new('RGB', (80, 60)).save(image)
    Image.new('L', (80, 60), color=3).save(annotation)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
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


@every_recipe
def test_recipe_has_what_test_time_augmentation_needs(recipe: Recipe):
    assert read(recipe).tta_model.type == 'SegTTAModel'


def model_index() -> dict[str, dict]:
    """The models that ``model-index.yml`` leads to, by name."""
    index = yaml.safe_load((CONFIGS.parent / 'model-index.yml').read_text())
    files = [CONFIGS.parent / path for path in index['Import']]
    models = [m for file in files for m in yaml.safe_load(file.read_text())['Models']]
    return {model['Name']: model for model in models}


@every_recipe
def test_model_index_describes_the_recipe(recipe: Recipe):
    cfg = read(recipe)
    entry = model_index()[recipe.name]
    metadata = entry['Metadata']

    assert entry['Config'] == f'configs/{recipe.name}.py'
    assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
    assert metadata['Iterations'] == cfg.train_cfg.max_iters
    assert metadata['Pretrained Backbone'] == cfg.model.backbone.init_cfg.checkpoint
    variant = recipe.name.split('_')[1]
    assert metadata['Architecture'][0] == f'Twins-{variant.upper()}'
    assert f'/twins_{variant}_' in entry['Weights']
    assert all(result['Reported By'] for result in entry['Results'])


def test_model_index_is_valid_for_mim():
    pytest.importorskip('modelindex', reason='comes with openmim')
    from modelindex.load_model_index import load

    index = load(str(CONFIGS.parent / 'model-index.yml'))
    index.build_models_with_collections()

    assert not index.check_errors
    assert {recipe.name for recipe in RECIPES} <= {m.name for m in index.models}
