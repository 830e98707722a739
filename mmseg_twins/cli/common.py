"""What the command-line tools share: arguments, and from arguments to a config.

``tools/train.py`` and ``tools/test.py`` take the arguments that mmsegmentation's own
tools take. Everything here looks at what the user gave before anything is built, so
that a mistake ends in one sentence instead of an error from deep inside a run.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..checkpoints.reading import first_cause, read_checkpoint
from ..engine.latest import find_whole_checkpoint
from ..errors import CheckpointError, SettingError

# What torchrun tells each process that it starts.
TORCHRUN_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')
CONFIG_SUFFIXES = ('.py', '.json', '.yml', '.yaml')


class OptionsAction(DictAction):
    """``--cfg-options``, with a sentence for a pair that is none."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Stores the pairs, as argparse asks."""
        for pair in values:
            key, equals, _ = pair.partition('=')
            if not key or not equals:
                parser.error(
                    f'{option_string}: {pair!r} is no KEY=VALUE pair, such as '
                    'train_cfg.max_iters=400'
                )
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what training and testing have in common.

    Args:
        parser: Gets the positional ``config`` and the options ``--work-dir``,
            ``--cfg-options``, ``--launcher`` and ``--local-rank``.
    """
    parser.add_argument('config', help='path of the config, such as configs/NAME.py')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: the work_dir of the config, '
        'or work_dirs/NAME of the config)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        metavar='KEY=VALUE',
        help='settings that replace those of the config, such as '
        'train_cfg.max_iters=400 model.backbone.init_cfg=None; lists are written '
        'key="[a,b]", without blanks',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='what started the processes of a distributed run (default: pytorch '
        'where torchrun started this one, else none)',
    )
    parser.add_argument(
        '--local-rank',
        '--local_rank',
        type=int,
        default=0,
        help='set by the launchers that do not use the environment',
    )


@contextmanager
def one_sentence_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turns the mistakes of a user into one line on stderr and exit status 2.

    Args:
        parser: Gives the name of the program.

    Raises:
        SystemExit: Instead of a ``ValueError``, or of an ``OSError``, inside the
            block.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')


@contextmanager
def setting_errors(parser: argparse.ArgumentParser) -> Iterator[None]:
    """Turns what the package finds wrong with a config or checkpoint into one line.

    Other errors of a run keep their traceback: they need not be the user's.

    Args:
        parser: Gives the name of the program.

    Raises:
        SystemExit: Instead of a ``SettingError`` or ``CheckpointError`` inside the
            block; its status is 2.
    """
    try:
        yield
    except (SettingError, CheckpointError) as error:
        parser.exit(2, f'{parser.prog}: error: {error}\n')


def read_config(args: argparse.Namespace) -> Config:
    """Reads the config that the common arguments describe.

    Args:
        args: Parsed arguments of :func:`add_common_arguments`.

    Returns:
        The config with ``--cfg-options``, ``work_dir`` and ``launcher`` set.

    Raises:
        FileNotFoundError: There is no such config.
        ValueError: It cannot be read, the options do not fit it, or the launcher's
            variables are missing.
    """
    path = require_file(args.config, 'config', suffix='.py')
    if path.suffix not in CONFIG_SUFFIXES:
        raise ValueError(
            f'config: {args.config!r} is no config file; those end in .py, .json or '
            '.yml'
        )
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # mmengine's own text has sys.path, over many lines
        raise ValueError(
            f'config: {args.config!r} imports what cannot be imported: '
            f'{first_cause(error)}'
        ) from error
    except (ConfigParsingError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'config: {args.config!r} cannot be read: {error}') from error
    try:
        cfg.merge_from_dict(args.cfg_options or {})
    except (KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options: {error}') from error
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / path.stem)
    cfg.launcher = find_launcher(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def find_launcher(given: str | None) -> str:
    """Says which launcher started this process.

    Args:
        given: The launcher that the user named, if any.

    Returns:
        ``given``, or ``'pytorch'`` under torchrun, else ``'none'``.

    Raises:
        ValueError: ``given`` is ``'pytorch'``, but torchrun's variables are not set.
    """
    under_torchrun = all(name in os.environ for name in TORCHRUN_VARIABLES)
    if given is None:
        return 'pytorch' if under_torchrun else 'none'
    # torch.distributed.launch may leave LOCAL_RANK to the argument --local-rank.
    missing = [name for name in ('RANK', 'WORLD_SIZE') if name not in os.environ]
    if given == 'pytorch' and missing:
        raise ValueError(
            f'--launcher pytorch: {" and ".join(missing)} not set in the environment; '
            'start the processes with `torchrun --nproc-per-node N '
            f'{Path(sys.argv[0])} ...`'
        )
    return given


def require_file(given: str, name: str, *, suffix: str) -> Path:
    """Checks that a file exists that the user named.

    Args:
        given: The path as the user wrote it.
        name: The argument's name, for the message.
        suffix: Ending of the files that are proposed instead.

    Returns:
        The path.

    Raises:
        FileNotFoundError: There is no such file; names similar ones.
    """
    path = Path(given)
    if path.is_file():
        return path
    problem = 'is a folder, not a file' if path.is_dir() else 'does not exist'
    folder = path if path.is_dir() else path.parent
    candidates = sorted(file.name for file in folder.glob(f'*{suffix}'))
    # Names of configs are long, and what is typed of them is often a part.
    similar = difflib.get_close_matches(path.name, candidates, n=3, cutoff=0.3)
    proposals = [str(folder / name) for name in similar or candidates[-1:]]
    hint = f'; did you mean {" or ".join(proposals)}?' if proposals else ''
    raise FileNotFoundError(f'{name}: {given!r} {problem}{hint}')


def require_checkpoint(given: str, name: str = 'checkpoint') -> str:
    """Checks that a checkpoint exists, unless it is a URL.

    Args:
        given: A path, or whatever with ``://`` in it mmengine can load.
        name: The argument's name, for the message.

    Returns:
        ``given``.

    Raises:
        FileNotFoundError: There is no such file.
    """
    if '://' not in given:
        require_file(given, name, suffix='.pth')
    return given


def require_training_state(given: str) -> None:
    """Checks that a training can go on from a checkpoint.

    Args:
        given: A path, which exists, or whatever mmengine can load.

    Raises:
        ValueError: A file cannot be read, or has weights only.
    """
    if '://' in given or not Path(given).is_file():
        return
    weights_only = given.endswith('.safetensors')
    content = {} if weights_only else read_checkpoint(Path(given), map_location='meta')
    missing = [key for key in ('meta', 'optimizer') if key not in content]
    if missing:
        raise ValueError(
            f'--resume: {given!r} has no {" and no ".join(missing)}: it holds weights, '
            'not the state of a training; leave --resume out to start with them, or '
            'add --cfg-options load_from=None to go on from the latest checkpoint in '
            'the work dir'
        )


def require_data(cfg: Config, *loaders: str) -> None:
    """Checks that the folders exist from which data loaders read.

    Args:
        cfg: A config of mmsegmentation's kind.
        loaders: Keys of ``cfg``, such as ``'train_dataloader'``. Those that are not
            set are passed over.

    Raises:
        FileNotFoundError: A folder is missing; says how to provide it.
    """
    for loader in loaders:
        if not cfg.get(loader):
            continue
        for folder in _data_folders(cfg[loader]['dataset']):
            if '://' not in folder and not Path(folder).is_dir():
                raise FileNotFoundError(
                    f'{loader}: the folder {folder!r} does not exist; put the data '
                    'there (tools/dataset_converters/images_to_ade20k.py lays out '
                    'images of your own as ADE20K, street_scenes.py beside it makes '
                    "the demo's), or set "
                    f'{loader}.dataset.data_root'
                )


def _data_folders(dataset: ConfigDict) -> Iterator[str]:
    """Yields the folders of a dataset's config, of wrapped datasets too."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner:
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _data_folders(one)
        return
    prefixes = dataset.get('data_prefix') or {}
    for key in ('img_path', 'seg_map_path'):
        if prefixes.get(key):
            yield os.path.join(dataset.get('data_root') or '', prefixes[key])


def use_mixed_precision(cfg: Config) -> None:
    """Turns on mixed-precision training, as ``--amp`` asks.

    Args:
        cfg: Its ``optim_wrapper`` becomes an ``AmpOptimWrapper``.

    Raises:
        ValueError: There is no accelerator, or the config has a wrapper of its own.
    """
    if get_device() in ('cpu', 'mps'):
        raise ValueError(
            '--amp: mmengine trains in mixed precision on a GPU only, and this '
            'machine has none; --cfg-options '
            'optim_wrapper.type=mmseg_twins.BF16OptimWrapper trains in bf16 without '
            'one'
        )
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise ValueError(
            f'--amp: the config has optim_wrapper.type {wrapper!r}; mixed precision '
            "can replace 'OptimWrapper' only"
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def scale_learning_rate(cfg: Config) -> None:
    """Scales the learning rate with the batch size, as ``--auto-scale-lr`` asks.

    Args:
        cfg: Its ``auto_scale_lr`` is switched on.

    Raises:
        ValueError: The config does not say for which batch size its rate is meant.
    """
    if not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
        raise ValueError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size, the '
            'batch size that its learning rate is meant for'
        )
    cfg.auto_scale_lr.enable = True


def set_aside_checkpoints(cfg: Config) -> Path | None:
    """Moves the checkpoints of an earlier run out of the way of a new one.

    A new run in the same folder would write over files of the same name.

    Args:
        cfg: Its ``work_dir`` is looked at.

    Returns:
        The new folder inside ``work_dir`` that has the checkpoints now, or None where
        there were none.

    Raises:
        ValueError: ``cfg.load_from`` is one of them.
    """
    work_dir = Path(cfg.work_dir)
    checkpoints = sorted(work_dir.glob('*.pth'))
    if not checkpoints:
        return None
    start = cfg.get('load_from')
    if start and any(Path(start).resolve() == file.resolve() for file in checkpoints):
        raise ValueError(
            f'load_from: {start!r} lies in the work_dir, whose checkpoints the new run '
            'would replace; give another --work-dir, or continue the run with --resume'
        )
    if process_rank() != 0:
        return None
    number = 1
    while (folder := work_dir / f'earlier_{number}').exists():
        number += 1
    folder.mkdir()
    notes = [work_dir / name for name in ('last_checkpoint', 'last_validation')]
    for file in [*checkpoints, *notes]:
        if file.exists():
            file.rename(folder / file.name)
    return folder


def resume_from_whole_checkpoint(cfg: Config) -> bool:
    """Lets a resumed run begin at a whole checkpoint, whatever hooks it has.

    Args:
        cfg: Its ``load_from`` is set where mmengine would take a damaged checkpoint, or
            none.

    Returns:
        Whether there is a checkpoint.

    Raises:
        NoWholeCheckpointError: Every checkpoint is damaged.
    """
    whole = find_whole_checkpoint(cfg.work_dir)
    last = Path(cfg.work_dir) / 'last_checkpoint'
    if whole and not (last.exists() and last.read_text().strip() == whole):
        cfg.load_from = whole
    return whole is not None


def process_rank() -> int:
    """Gives this process's number in a distributed run, before that is set up."""
    for name in ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK'):
        if name in os.environ:
            return int(os.environ[name])
    return 0


def use_test_time_augmentation(cfg: Config) -> None:
    """Evaluates at several scales and mirrored, as ``--tta`` asks.

    Args:
        cfg: Its test pipeline and model are replaced by ``tta_pipeline`` and
            ``tta_model``.

    Raises:
        ValueError: The config does not have both.
    """
    for key in ('tta_pipeline', 'tta_model'):
        if not cfg.get(key):
            raise ValueError(
                f'--tta: the config has no {key}; configs that inherit '
                'mmseg::_base_/default_runtime.py and a dataset of mmseg::_base_ do'
            )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def write_predictions(cfg: Config, folder: str) -> None:
    """Writes the predicted class maps as PNG files, as ``--out`` asks.

    Args:
        cfg: The evaluator of its test gets the folder.
        folder: Must be new or empty: predictions have the names of the images, and so
            have annotations.

    Raises:
        ValueError: The folder holds something.
    """
    path = Path(folder)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(
            f'--out: {folder!r} is not empty; give a new folder, so that nothing in '
            'it is overwritten'
        )
    evaluators = cfg.test_evaluator
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        evaluator['output_dir'] = folder
        evaluator['keep_results'] = True


def draw_predictions(
    cfg: Config, *, show: bool, folder: str | None, wait_time: float
) -> None:
    """Draws the prediction over each image, as ``--show`` and ``--show-dir`` ask.

    Args:
        cfg: Its visualization hook and visualizer are set.
        show: Open a window for each image.
        folder: Where the drawings are written, if anywhere.
        wait_time: Seconds that a window stays open.

    Raises:
        ValueError: The config has no visualization hook, or there is no display.
    """
    hook = cfg.get('default_hooks', {}).get('visualization')
    if hook is None:
        raise ValueError(
            '--show and --show-dir: the config has no default_hooks.visualization, '
            "such as dict(type='SegVisualizationHook')"
        )
    has_display = os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    if show and sys.platform.startswith('linux') and not has_display:
        raise ValueError(
            '--show: there is no display here; --show-dir FOLDER writes the drawings '
            'to files'
        )
    # The hook's own interval would draw every 50th image only.
    hook.update(draw=True, interval=1, show=show, wait_time=wait_time)
    if folder is not None:
        cfg.visualizer.save_dir = folder


def build_runner(cfg: Config) -> Runner:
    """Builds the runner that a config asks for.

    Args:
        cfg: ``runner_type`` names another runner than mmengine's, if it is set.

    Returns:
        The runner, ready to train or test.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
