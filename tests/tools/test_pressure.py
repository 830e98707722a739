"""Memory and threads: large images, long trainings, several predictions at once."""

from __future__ import annotations

import copy
import functools
import gc
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from benchmarking.models import read_config
from mmengine.config import ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from pressuring import alone, cli, inference, training
from pressuring.alone import ABOVE_LIMIT, FAILED, OK, OUT_OF_MEMORY, Ending

from mmseg_twins.ops import conv3x3 as winograd
from mmseg_twins.ops import mlp
from mmseg_twins.ops import pyramid_conv as upsampled_conv
from mmseg_twins.ops import upsampled_cross_entropy as upsampled_loss

MB = 10**6
SIZES = [(64, 64), (72, 100), (45, 130), (96, 32)]
LINUX = pytest.mark.skipif(
    not (cli.STATUS.exists() and cli.CLEAR.exists()), reason='needs what Linux records'
)


# Threads


def narrow(head: str, family: str = 'SVT') -> torch.nn.Module:
    """A segmentor of small widths, of whose fused convolutions nothing is left out."""
    widths, classes = [8, 16, 24, 32], 5
    norm = dict(type='BN', requires_grad=True)
    common = dict(num_classes=classes, channels=8, norm_cfg=norm, align_corners=False)
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32),
        backbone=dict(
            type=f'mmseg_twins.{family}',
            embed_dims=widths,
            num_heads=[1, 2, 3, 4],
            mlp_ratios=[2, 2, 2, 2],
            depths=[2, 2, 2, 1],
            sr_ratios=[8, 4, 2, 1],
        ),
        test_cfg=dict(mode='whole'),
        train_cfg=dict(),
    )
    if family == 'SVT':
        cfg['backbone']['window_sizes'] = [7, 7, 7, 7]
    if head == 'uperhead':
        cfg['decode_head'] = dict(
            type='mmseg_twins.UPerHead',
            in_channels=widths,
            in_index=[0, 1, 2, 3],
            pool_scales=(1, 2, 3, 6),
            **common,
        )
        cfg['auxiliary_head'] = dict(
            type='mmseg_twins.FCNHead', in_channels=24, in_index=2, **common
        )
    else:
        cfg['neck'] = dict(type='FPN', in_channels=widths, out_channels=8, num_outs=4)
        cfg['decode_head'] = dict(
            type='mmseg_twins.FPNHead',
            in_channels=[8] * 4,
            in_index=[0, 1, 2, 3],
            feature_strides=[4, 8, 16, 32],
            **common,
        )
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(cfg))
    return revert_sync_batchnorm(model).eval()


def batch(height: int, width: int, *, labels: bool = False) -> dict:
    """A random image, with labels where it is for training."""
    size = (height, width)
    sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
    if labels:
        sample.gt_sem_seg = PixelData(data=torch.randint(5, (1, *size)))
    images = [torch.randint(256, (3, *size), dtype=torch.uint8)]
    return {'inputs': images, 'data_samples': [sample]}


def logits(model, data: dict) -> torch.Tensor:
    """What a prediction gives, in inference mode, which holds for its thread only."""
    with torch.inference_mode():
        (sample,) = model.test_step(data)
    return sample.seg_logits.data


def train_step(model, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Gradients of one step; two images, as batch norm needs."""
    model.train()
    one, two = batch(*size, labels=True), batch(*size, labels=True)
    data = model.data_preprocessor(
        {key: one[key] + two[key] for key in one}, training=True
    )
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def empty_caches():
    """The matrices are made anew, as in a process that has just begun."""
    caches = (
        upsampled_conv.interpolation,
        upsampled_conv.shifted_interpolation,
        upsampled_loss.strips,
    )
    for cache in caches:
        cache.cache_clear()
    yield caches
    for cache in caches:
        cache.cache_clear()


@pytest.fixture(params=['small', 'large'])
def code_for(request, monkeypatch) -> str:
    """Lets small maps go through the code for large ones, too."""
    if request.param == 'large':
        monkeypatch.setattr(winograd, 'MIN_CHANNELS', 1)
        monkeypatch.setattr(winograd, 'MIN_PIXELS', 1)
        monkeypatch.setattr(winograd, 'STRIP', 2**12)
        monkeypatch.setattr(mlp, 'CHUNKED_FROM', 0)
        monkeypatch.setattr(mlp, 'CHUNK', 2**12)
    return request.param


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_four_threads_predict_what_one_does(head, code_for, empty_caches):
    model = narrow(head)
    images = [batch(*size) for size in SIZES * 4]
    one_by_one = [logits(model, data) for data in images]
    for cache in empty_caches:
        cache.cache_clear()
    # No thread begins before all are there.
    start = threading.Barrier(4)
    with ThreadPoolExecutor(4, initializer=start.wait, initargs=(60,)) as pool:
        together = list(pool.map(lambda data: logits(model, data), images))
    assert all(map(torch.equal, one_by_one, together))


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
@pytest.mark.parametrize('mode', [torch.inference_mode, torch.no_grad])
def test_training_after_predictions_in_threads_has_the_same_gradients(
    head, mode, empty_caches
):
    model = narrow(head)
    before, after = copy.deepcopy(model), copy.deepcopy(model)
    torch.manual_seed(1)
    expected = train_step(before, (72, 100))
    for cache in empty_caches:
        cache.cache_clear()

    def predict(size):
        with mode():
            model.test_step(batch(*size))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(predict, [(72, 100), (64, 64), (96, 128), (72, 100)]))
    torch.manual_seed(1)
    gradients = train_step(after, (72, 100))
    assert gradients.keys() == expected.keys()
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


def test_training_after_a_loss_in_inference_mode_has_the_same_gradients(empty_caches):
    model = narrow('uperhead')
    torch.manual_seed(1)
    expected = train_step(copy.deepcopy(model), (64, 96))
    for cache in empty_caches:
        cache.cache_clear()
    data = batch(64, 96, labels=True)
    with torch.inference_mode():
        model(**model.data_preprocessor(data, training=True), mode='loss')
    torch.manual_seed(1)
    gradients = train_step(model, (64, 96))
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)


# What stays behind


def test_matrices_of_more_sizes_than_are_kept_are_forgotten(empty_caches):
    for cache in empty_caches:
        kept = cache.cache_info().maxsize
        for size in range(2, kept + 20):
            cache(2, size, False, torch.float32, torch.device('cpu'))
        assert cache.cache_info().currsize == kept


@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_neither_predictions_nor_steps_leave_tensors_behind(head, empty_caches):
    model = narrow(head)
    counts = []
    for _ in range(3):
        train_step(model, (64, 64))
        model.zero_grad()
        logits(model.eval(), batch(64, 64))
        gc.collect()
        counts.append(sum(type(found) is torch.Tensor for found in gc.get_objects()))
    assert counts[1] == counts[2]


@functools.cache
def full_config(implementation, variant, head):
    """Reading one takes mmengine a second."""
    return read_config(implementation, variant, head)


@pytest.fixture
def recipe_read_once(monkeypatch):
    monkeypatch.setattr(
        training, 'read_config', lambda *which: full_config(*which).copy()
    )


@pytest.mark.parametrize(
    ('per_step', 'jump', 'level'),
    [(0, 0, True), (100_000, 0, False), (0, 100 * MB, True)],
    ids=['level', 'a leak', 'a jump at the beginning'],
)
def test_growth_is_what_every_step_leaves(per_step, jump, level):
    # Sizes that change from step to step come and go.
    memory = [
        500 * MB + per_step * step + (jump if step > 20 else 0) + 8 * MB * (step % 4)
        for step in range(200)
    ]
    growth = training.growth_of(memory)
    assert growth.warm_up == 50
    assert growth.slope == pytest.approx(per_step, abs=2000)
    assert (growth.total <= 10 * MB) is level


def test_steps_have_a_loss_and_a_memory_each(recipe_read_once):
    messages = []
    job = training.TrainingJob('svt-s', 'fpn', 3)
    result = training.train(job, lambda *message: messages.append(message))
    assert len(result['losses']) == len(result['memory_bytes']) == 3
    assert all(map(math.isfinite, result['losses']))
    assert messages[0][0] == 'level'


# A process of its own


@pytest.fixture
def forked(monkeypatch):
    """Processes that need not import everything first."""
    if 'fork' not in multiprocessing.get_all_start_methods():
        pytest.skip('needs processes that are copies')
    monkeypatch.setattr(alone, 'START', 'fork')


def raise_error(error, tell):
    raise error


@pytest.mark.parametrize(
    ('error', 'status'),
    [
        (ValueError('no such thing'), FAILED),
        (MemoryError(), OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY),
    ],
)
def test_an_error_there_is_an_ending_here(error, status, forked):
    ending = alone.run_alone(raise_error, error)
    assert ending.status == status
    assert ending.message.startswith(type(error).__name__)


@pytest.mark.parametrize(
    ('end', 'status', 'says'),
    [
        (lambda: os._exit(3), FAILED, 'exit code 3'),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), OUT_OF_MEMORY, 'system'),
    ],
)
def test_a_process_that_ends_by_itself_is_reported(end, status, says, forked):
    ending = alone.run_alone(lambda tell: end())
    assert ending.status == status
    assert says in ending.message


def test_what_it_returns_and_tells_arrives(forked):
    told = []

    def work(a, b, tell):
        tell('progress', 'half of it')
        return a + b

    assert alone.run_alone(work, 2, 3, progress=told.append) == Ending(OK, 5)
    assert told == ['half of it']


@LINUX
@pytest.mark.parametrize(('limit', 'status'), [(100 * MB, ABOVE_LIMIT), (None, OK)])
def test_a_process_above_the_limit_is_ended(limit, status, forked):
    def work(tell):
        tell('level', alone.resident_memory(os.getpid()))
        kept = b'1' * 200 * MB
        time.sleep(60 if limit else 0)
        return len(kept)

    ending = alone.run_alone(work, max_growth=limit)
    assert ending.status == status


# Predictions


@pytest.fixture
def narrow_recipes(monkeypatch, recipe_read_once):
    """Recipes of small widths."""

    def read(implementation, variant, head):
        return training.narrow_config(training.TrainingJob(variant, head, 20))

    monkeypatch.setattr(inference, 'read_config', read)


@LINUX
@pytest.mark.parametrize('mode', inference.MODES)
def test_a_prediction_of_an_odd_size_has_a_peak_and_times(mode, narrow_recipes):
    job = inference.Job('svt-s', 'fpn', mode, 75, 141, crop=64, stride=40, runs=2)
    levels = []
    result = inference.predict(job, lambda *message: levels.append(message))
    assert result['peak_memory_bytes'] >= 0
    assert len(result['seconds']) == 2
    assert [kind for kind, _ in levels] == ['level']


@pytest.mark.parametrize('size', [(32, 32), (64, 65), (100, 75), (104, 145)])
def test_windows_are_as_many_as_go_through_the_network(size, monkeypatch):
    calls = []
    model = narrow('fpn')
    model.test_cfg = ConfigDict(mode='slide', crop_size=(64, 64), stride=(40, 40))

    def encode_decode(image, metas):
        calls.append(image.shape)
        return image.new_zeros(1, model.out_channels, *image.shape[2:])

    monkeypatch.setattr(model, 'encode_decode', encode_decode)
    model.slide_inference(torch.zeros(1, 3, *size), [{}])
    job = inference.Job('svt-s', 'fpn', 'slide', *size, crop=64, stride=40)
    assert job.windows == len(calls)


def test_images_that_fit_into_a_window_are_predicted_whole_only():
    jobs = inference.make_jobs(
        variant='svt-s',
        heads=['fpn'],
        modes=['whole', 'slide'],
        sizes=[(512, 512), (512, 513)],
    )
    found = [(job.mode, job.width) for job in jobs]
    assert found == [('whole', 512), ('whole', 513), ('slide', 513)]


def test_a_peak_that_nobody_saw_counts_too(monkeypatch):
    value = {'peak_memory_bytes': 300 * MB, 'seconds': [1.0]}
    monkeypatch.setattr(inference, 'run_alone', lambda *_, **__: Ending(OK, value))
    job = inference.Job('svt-s', 'fpn', 'whole', 64, 64)
    assert inference.measure(job, max_memory=200 * MB).status == ABOVE_LIMIT
    assert inference.measure(job, max_memory=400 * MB).status == OK


# The command


@pytest.fixture
def endings(monkeypatch):
    """Replaces the measuring: images end in turn as the list says, then well."""
    turns = []

    def measure(job, **_):
        if turns:
            return turns.pop(0)
        value = {'peak_memory_bytes': 10 * job.height * MB, 'seconds': [0.5, 0.25, 1.0]}
        return Ending(OK, value)

    monkeypatch.setattr(inference, 'measure', measure)
    monkeypatch.setattr(training, 'measure', measure)
    return turns


def training_ending(per_step: int) -> Ending:
    memory = [500 * MB + per_step * step for step in range(40)]
    return Ending(OK, {'memory_bytes': memory, 'losses': [1.0] * 40})


@LINUX
def test_an_image_that_does_not_fit_is_a_row_and_no_crash(endings, capsys):
    endings += [
        Ending(OUT_OF_MEMORY, message='the system ended the process'),
        alone.above(100 * MB),
    ]
    assert cli.main(['--sizes', '32', '64', '100x75', '--modes', 'whole']) == 0
    out, err = capsys.readouterr()
    assert 'out of memory: the system ended the process' in out
    assert 'above limit: more than 100 MB' in out
    (row,) = [line for line in out.splitlines() if '100x75' in line]
    assert row.split()[2:] == [
        '100x75',
        '0.0075',
        'whole',
        '1',
        '1,000',
        '133,333',
        '0.5',
        '66.7',
        'ok',
    ]
    assert '[3/3] svt-s uperhead, 100x75, whole' in err


@LINUX
def test_another_error_is_a_row_and_exit_status_1(endings, capsys):
    endings += [Ending(FAILED, message='ValueError: odd')]
    assert cli.main(['--sizes', '32', '64']) == 1
    out = capsys.readouterr().out
    assert 'failed: ValueError: odd' in out
    assert '64x64' in out


@LINUX
@pytest.mark.parametrize(('per_step', 'status'), [(1000, 0), (2 * MB, 1)])
def test_growing_memory_is_exit_status_1(per_step, status, endings, capsys):
    endings += [training_ending(0), training_ending(per_step)]
    assert cli.main(['--steps', '40', '--max-growth', '20']) == status
    out = capsys.readouterr().out
    assert out.count('level') == 2 - status
    assert out.count('GROWS') == status


@LINUX
def test_files_are_written(endings, tmp_path, capsys):
    files = ['--json', str(tmp_path / 'a.json'), '--plot', str(tmp_path / 'a.png')]
    endings += [Ending(OK, {'peak_memory_bytes': 50 * MB, 'seconds': [1.0]})]
    endings += [alone.above(100 * MB)]
    cli.main(['--sizes', '64', '600', *files, '--markdown'])
    content = json.loads((tmp_path / 'a.json').read_text())
    assert [result['status'] for result in content['results']] == [
        OK,
        ABOVE_LIMIT,
        OK,
    ]
    assert content['results'][2]['windows'] == 4
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out.startswith(
        '```console\npython tools/analysis_tools/pressure.py'
    )


@LINUX
def test_training_is_drawn(endings, tmp_path):
    endings += [training_ending(0), training_ending(1000)]
    cli.main(['--steps', '40', '--plot', str(tmp_path / 'a.png')])
    assert (tmp_path / 'a.png').read_bytes().startswith(b'\x89PNG')


@LINUX
@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (['--steps', '200', '--sizes', '64'], '--sizes is about predictions'),
        (['--steps', '5'], 'give at least 20'),
        (['--max-growth', '5'], 'give --steps, too'),
        (['--sizes', '16x64'], 'both sides need at least 32 px for svt-s'),
        (['--crop', '128'], '--stride 341: give no more than --crop 128'),
        (['--max-memory', '0'], "'0' is no number above 0"),
        (['--plot', 'a.gif'], "'a.gif' does not end in"),
        (['--json', 'there.json'], 'there.json exists already; --force replaces it'),
        (['--sizes', '64', '--modes', 'slide'], 'every image fits into one window'),
    ],
)
def test_mistakes_are_one_sentence(
    arguments, says, endings, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'there.json').write_text('kept')
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    assert exit_.value.code == 2
    assert says in capsys.readouterr().err
    assert (tmp_path / 'there.json').read_text() == 'kept'


@LINUX
def test_an_interruption_leaves_what_was_measured(monkeypatch, capsys, endings):
    measure = inference.measure

    def interrupted(job, **kwargs):
        if job.height == 64:
            raise KeyboardInterrupt(signal.SIGTERM)
        return measure(job, **kwargs)

    monkeypatch.setattr(inference, 'measure', interrupted)
    assert cli.main(['--sizes', '32', '64']) == 128 + signal.SIGTERM
    out, err = capsys.readouterr()
    assert '32x32' in out
    assert 'interrupted' in err


@LINUX
def test_what_is_not_asked_for_again_is_kept(endings, tmp_path, capsys):
    path = tmp_path / 'a.json'
    cli.main(['--sizes', '32', '64', '--json', str(path)])
    capsys.readouterr()
    assert cli.main(['--sizes', '64', '--json', str(path), '--resume']) == 0
    assert '32x32' not in capsys.readouterr().out
    results = json.loads(path.read_text())['results']
    assert sorted(result['height'] for result in results) == [32, 64]


@LINUX
def test_what_was_measured_is_not_measured_again(endings, tmp_path, capsys):
    path = tmp_path / 'a.json'
    endings += [Ending(OUT_OF_MEMORY, message='the system ended the process')]
    cli.main(['--sizes', '64', '600', '--json', str(path)])
    capsys.readouterr()
    # The first did not go through, and the last is another one now.
    arguments = ['--sizes', '64', '600', '--stride', '300', '--json', str(path)]
    assert cli.main([*arguments, '--resume']) == 0
    out, err = capsys.readouterr()
    assert [line.split(',')[1:] for line in err.splitlines()] == [
        [' 64x64', ' whole'],
        [' 600x600', ' slide'],
    ]
    assert out.count('600x600') == 2
    results = json.loads(path.read_text())['results']
    assert [(result['mode'], result['stride']) for result in results] == [
        ('whole', 300),
        ('whole', 341),
        ('slide', 300),
        ('slide', 341),
    ]
    assert all(result['status'] == OK for result in results)


@LINUX
@pytest.mark.parametrize('content', ['{}', 'no JSON', '{"kind": "training"}', '[]'])
def test_another_file_is_not_resumed(content, endings, tmp_path, capsys):
    path = tmp_path / 'a.json'
    path.write_text(content)
    with pytest.raises(SystemExit) as exit_:
        cli.main(['--sizes', '64', '--json', str(path), '--resume'])
    assert exit_.value.code == 2
    assert 'holds no predictions' in capsys.readouterr().err
    assert path.read_text() == content


# The real thing


@LINUX
@pytest.mark.slow
def test_images_go_through_in_processes_of_their_own(tmp_path):
    path = tmp_path / 'a.json'
    arguments = ['--heads', 'fpn', '--modes', 'whole', '--threads', '1', '--runs', '1']
    sizes = ['--sizes', '32', '75x100', '512']
    memory = ['--max-memory', '0.15']
    assert cli.main([*arguments, *sizes, *memory, '--json', str(path)]) == 0
    results = json.loads(path.read_text())['results']
    assert [result['status'] for result in results] == [OK, OK, ABOVE_LIMIT]
    assert all(result['peak_memory_bytes'] > 0 for result in results[:2])


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize('head', ['uperhead', 'fpn'])
def test_memory_stays_level_over_200_steps(head):
    assert cli.main(['--steps', '200', '--heads', head]) == 0


@LINUX
@pytest.mark.slow
def test_a_leak_is_found():
    # In a process of its own, as others have freed memory that a leak fills first.
    done = subprocess.run(
        [sys.executable, '-c', LEAK], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) == pytest.approx(500_000, rel=0.3)


LEAK = """
from pressuring import training

kept = []
make_batch = training.make_batch


def leaking(*size):
    kept.append(b'1' * 500_000)
    return make_batch(*size)


training.make_batch = leaking
job = training.TrainingJob('svt-s', 'fpn', 100)
memory = training.train(job, lambda *_: None)['memory_bytes']
print(training.growth_of(memory).slope)
"""
