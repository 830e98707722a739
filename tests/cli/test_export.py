"""``tools/export_onnx.py``: what it writes, and its messages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmseg_twins.apis import export as export_module
from mmseg_twins.apis.export import example_image, prepare
from mmseg_twins.apis.exported import (
    compare,
    load_onnx,
    load_openvino,
    predict_logits,
)
from mmseg_twins.apis.loading import build_segmentor, load_weights
from mmseg_twins.cli import export as cli
from mmseg_twins.cli.export import main

ROOT = Path(__file__).parents[2]
TINY = dict(stages=2, depths=(1, 1), pool_scales=(2,))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config_text) -> Path:
    """A folder with the config of a segmentor of two stages, to work in."""
    (tmp_path / 'small.py').write_text(config_text(**TINY))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def deploy() -> None:
    for name in export_module.DEPLOY_PACKAGES:
        pytest.importorskip(name, reason='comes with the extra `deploy`')


@pytest.fixture
def winograd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for CPUs have Winograd's algorithm, however small their maps."""
    monkeypatch.setattr(sys.modules['mmseg_twins.ops.conv3x3'], 'MIN_CHANNELS', 1)
    monkeypatch.setattr(sys.modules['mmseg_twins.ops.conv3x3'], 'MIN_PIXELS', 1)


def save_checkpoint(path: str, change=lambda name: name) -> None:
    """Random weights of the small config, with an auxiliary head's beside them."""
    segmentor = build_segmentor(Config.fromfile('small.py'))
    with torch.no_grad():
        for parameter in segmentor.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {change(name): value for name, value in segmentor.state_dict().items()}
    state['auxiliary_head.conv_seg.weight'] = torch.zeros(5, 8, 1, 1)
    torch.save(dict(state_dict=state, meta={}), path)


def kernels(graph) -> list[tuple[int, ...]]:
    """The shapes of the convolutions' weights in an ONNX graph."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == 'Conv']
    return [weights.get(node.input[1], ()) for node in convolutions]


@pytest.mark.usefixtures('deploy')
def test_one_dynamic_file_is_right_at_every_size(
    folder: Path, monkeypatch, capsys, winograd
):
    import onnx

    monkeypatch.setattr(cli, 'SIZES', ((3, 56, 75),))
    save_checkpoint('weights.pth')
    arguments = 'small.py weights.pth out.onnx --dynamic --size 96 64'
    assert main(arguments.split()) == 0

    assert '3 x 56x75' in capsys.readouterr().out
    segmentor = build_segmentor(Config.fromfile('small.py'))
    load_weights(segmentor, 'weights.pth')
    form = prepare(segmentor)
    predict = load_onnx(folder / 'out.onnx', threads=1)
    for size in [(1, 64, 64), (3, 224, 96), (2, 61, 75), (1, 32, 33)]:
        difference = compare(predict, segmentor, form, size)
        assert difference.largest > 0.1
        assert difference.difference < 1e-4 * difference.largest, size
    model = onnx.load('out.onnx')
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert (8, 8, 3, 3) not in kernels(model.graph)
    assert [d.dim_param or d.dim_value for d in shape] == [
        'batch', 3, 'height', 'width',
    ]  # fmt: skip
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata['mean']) == pytest.approx([123.675, 116.28, 103.53])
    assert json.loads(metadata['classes'])[:2] == ['wall', 'building']
    assert len(json.loads(metadata['palette'])) == 150
    assert sorted(p.name for p in folder.iterdir()) == [
        'out.onnx', 'small.py', 'weights.pth',
    ]  # fmt: skip


@pytest.mark.usefixtures('deploy')
def test_maps_are_convolved_at_their_own_resolution(folder: Path, config_text):
    import onnx

    Path('small.py').write_text(config_text('PCPVT', 'UPerHead', **TINY))
    assert main(['small.py', 'none', 'out.onnx', '--size', '64', '96']) == 0

    found = kernels(onnx.load('out.onnx').graph)
    # The bottleneck of two levels of 8 channels each.
    assert (8, 16, 3, 3) not in found
    assert (8, 8, 3, 3) in found


@pytest.mark.usefixtures('deploy', 'winograd')
def test_files_for_gpus_have_plain_convolutions(folder: Path):
    import onnx

    arguments = 'small.py none out.onnx --size 64 96 --target gpu'
    assert main(arguments.split()) == 0

    assert (8, 8, 3, 3) in kernels(onnx.load('out.onnx').graph)


@pytest.mark.usefixtures('deploy')
def test_weights_in_half_precision_are_half_the_file(folder: Path, monkeypatch, capsys):
    import onnx

    monkeypatch.setattr(export_module, 'MIN_HALVED', 64)
    save_checkpoint('weights.pth')
    files = []
    for name, options in (('full.onnx', ''), ('half.onnx', '--fp16-weights')):
        arguments = f'small.py weights.pth {name} --size 64 96 {options}'
        assert main(arguments.split()) == 0
        tensors = onnx.load(name).graph.initializer
        floats = [one for one in tensors if one.data_type in (1, 10)]
        files.append(sum(len(one.raw_data) for one in floats))

    full, half = files
    assert 0.5 * full <= half < 0.6 * full
    image = torch.randn(1, 3, 64, 96)
    full, half = (
        load_onnx(folder / f'{name}.onnx')(image) for name in ('full', 'half')
    )
    largest = full.abs().max()
    assert 0 < (full - half).abs().max() < 0.01 * largest


@pytest.mark.usefixtures('deploy')
def test_numbers_too_large_for_half_precision_stay():
    from onnx import TensorProto, helper, numpy_helper

    large = torch.full((64, 64), 1e5).numpy()
    tensor = numpy_helper.from_array(large, 'weight')
    graph = helper.make_graph([], 'graph', [], [], [tensor])
    export_module.halve_weights(graph)

    assert graph.initializer[0].data_type == TensorProto.FLOAT
    assert len(graph.node) == 0


@pytest.mark.usefixtures('deploy')
def test_openvino_computes_the_same(folder: Path, monkeypatch, capsys):
    pytest.importorskip('openvino', reason='comes with the extra `openvino`')
    monkeypatch.setattr('mmseg_twins.apis.exported.PAUSE_SECONDS', 0)
    monkeypatch.setattr(cli, 'SIZES', ((3, 56, 75), (1, 33, 64)))
    save_checkpoint('weights.pth')
    arguments = 'small.py weights.pth out.onnx --dynamic --size 64 96 --latency'
    assert main(arguments.split()) == 0

    printed = capsys.readouterr().out
    assert 'OpenVINO:' in printed
    assert printed.count('3 x 56x75') == 2
    assert '    OpenVINO  ' in printed
    predict = load_openvino(folder / 'out.onnx', threads=1)
    images = [torch.randn(1, 3, 64, 96) for _ in range(2)]
    first, _ = predict(images[0]), predict(images[1])
    expected = load_onnx(folder / 'out.onnx')(images[0])
    assert torch.allclose(first, expected, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.usefixtures('deploy')
def test_classes_of_bytes_are_those_of_the_segmentor(folder: Path, capsys):
    save_checkpoint('weights.pth')
    arguments = 'small.py weights.pth out.onnx --size 64 96 --output classes'
    assert main([*arguments.split(), '--embed-preprocessing']) == 0
    assert 'not resized inside' in capsys.readouterr().out

    segmentor = build_segmentor(Config.fromfile('small.py'))
    load_weights(segmentor, 'weights.pth')
    form = prepare(segmentor, embed_preprocessing=True)
    image = example_image(form, 1, 64, 96)
    classes = load_onnx(folder / 'out.onnx')(image)

    expected = predict_logits(segmentor, form, image).argmax(1)
    assert classes.dtype == torch.int64
    assert len(expected.unique()) > 1
    assert (classes == expected).double().mean() > 0.999


def test_a_program_is_right_at_its_size(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr('mmseg_twins.apis.exported.PAUSE_SECONDS', 0)
    assert main(['small.py', 'none', 'out.pt2', '--size', '64', '96', '--latency']) == 0

    module = torch.export.load('out.pt2').module()
    assert module(torch.zeros(1, 3, 64, 96)).shape == (1, 5, 64, 96)
    printed = capsys.readouterr().out
    assert 'weights: random' in printed
    assert 'median ms' in printed


def test_nothing_is_written_where_the_check_fails(folder: Path, monkeypatch, capsys):
    (folder / 'out.pt2').write_bytes(b'earlier')
    # The file of another program: everything is of class 0.
    zeros = torch.zeros(1, 5, 64, 64)
    monkeypatch.setattr(cli, 'trace', lambda *args, **kwargs: None)
    monkeypatch.setattr(cli, 'write_program', lambda *args: args[1].write_bytes(b'new'))
    monkeypatch.setattr(cli, 'load_program', lambda path: lambda image: zeros)

    with pytest.raises(SystemExit) as stop:
        main(['small.py', 'none', 'out.pt2', '--size', '64', '64', '--force'])

    assert stop.value.code == 1
    assert 'differ from the segmentor at 1 of 1 sizes' in capsys.readouterr().err
    assert (folder / 'out.pt2').read_bytes() == b'earlier'
    assert sorted(p.name for p in folder.iterdir()) == ['out.pt2', 'small.py']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('small.py none no/out.pt2', 'there is no folder no; create it first'),
        ('small.py none .', '. is a folder; give the name of a file'),
        ('small.py none out.pth', 'does not end in .onnx or .pt2'),
        ('small.py none taken.pt2', 'exists already; --force replaces it'),
        ('small.py none out.pt2 --size 64 8', 'the image is 64x8 px'),
        ('small.py none out.pt2 --size 64 0', "--size: '0' is not a positive integer"),
        ('small.py none out.pt2 --batch-size 0', "'0' is not a positive integer"),
        ('small.py none out.pt2 --opset 18', '--opset: only for ONNX'),
        ('small.py none out.pt2 --fp16-weights', '--fp16-weights: only for ONNX'),
        ('small.py no.pth out.pt2', "checkpoint: 'no.pth' does not exist"),
        ('small.py small.py out.pt2', 'small.py is not a checkpoint'),
        ('small.py other.pth out.pt2', 'other.pth does not fit the config'),
        ('no.py none out.pt2', "config: 'no.py' does not exist; did you mean small.py"),
    ],
)
def test_mistakes_end_in_one_sentence(
    folder: Path, capsys, arguments: str, message: str
):
    (folder / 'taken.pt2').write_bytes(b'earlier')
    save_checkpoint('other.pth', lambda name: name.replace('norm_list', 'norms'))
    before = sorted(folder.rglob('*'))

    with pytest.raises(SystemExit) as stop:
        main(arguments.split())

    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2
    assert error.startswith('export_onnx.py: error: ')
    assert message in error
    assert sorted(folder.rglob('*')) == before
    assert (folder / 'taken.pt2').read_bytes() == b'earlier'


def test_missing_packages_are_named_with_their_extra(folder: Path, monkeypatch, capsys):
    monkeypatch.setattr(export_module, 'DEPLOY_PACKAGES', ('onnx_of_nobody',))

    with pytest.raises(SystemExit) as stop:
        main(['small.py', 'none', 'out.onnx'])

    assert stop.value.code == 2
    assert "onnx_of_nobody; run: pip install 'mmseg_twins[deploy]'" in (
        capsys.readouterr().err
    )


@pytest.mark.slow
@pytest.mark.usefixtures('deploy')
@pytest.mark.parametrize('family', ['pcpvt', 'svt'])
def test_a_whole_config_exports(tmp_path: Path, family: str, capsys):
    config = ROOT / f'configs/twins_{family}-s_fpn_fpnhead_8x4_512x512_80k_ade20k.py'
    out = tmp_path / 'out.onnx'

    assert (
        main([str(config), 'none', str(out), '--dynamic', '--size', '256', '256']) == 0
    )
    assert 'WRONG' not in capsys.readouterr().out
