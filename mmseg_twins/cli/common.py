"""Shared by the commands: arguments, reading configs, and errors in one sentence.

Arguments are checked before anything is built, so that a mistake ends in one sentence
instead of an error from deep inside a run.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.config.utils import ConfigParsingError
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..apis.configs import resolve_config
from ..checkpoints.downloading import is_url
from ..checkpoints.reading import first_cause, one_line
from ..checkpoints.writing import naming
from ..engine.full_disk import raise_if_full
from ..errors import (
    CheckpointError,
    DataError,
    SettingError,
    TrainingError,
    WritingError,
)

# What torchrun sets for each process that it starts.
TORCHRUN_VARIABLES = ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')
MIN_SPACE = 1 << 20  # bytes on the disk, for the logs of a run
CONFIG_SUFFIXES = ('.py', '.json', '.yml', '.yaml')


class OptionsAction(DictAction):
    """The action of ``--cfg-options``, which rejects all but KEY=VALUE pairs."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: str | None = None,
    ) -> None:
        """Store the pairs."""
        for pair in values:
            key, equals, _ = pair.partition('=')
            if not key or not equals:
                parser.error(
                    f'{option_string}: {pair!r} is not a KEY=VALUE pair, such as '
                    'train_cfg.max_iters=400'
                )
        super().__call__(parser, namespace, values, option_string)


def add_config_arguments(
    parser: argparse.ArgumentParser, *, optional: bool = False
) -> None:
    """Add the positional ``config`` and ``--cfg-options``."""
    parser.add_argument(
        'config',
        nargs='?' if optional else None,
        help="config: a path, or the name of one of the package's configs",
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=OptionsAction,
        metavar='KEY=VALUE',
        help='settings that override those of the config, such as '
        'train_cfg.max_iters=400 model.backbone.init_cfg=None; write lists as '
        'key="[a,b]", without spaces',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    add_config_arguments(parser)
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dir of the config, or '
        'work_dirs/NAME)',
    )
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        help='job launcher of a distributed run (default: pytorch under torchrun, '
        'else none)',
    )
    parser.add_argument(
        '--local-rank',
        '--local_rank',
        type=int,
        default=0,
        help='set by launchers that do not set LOCAL_RANK in the environment',
    )


def positive(value: str) -> int:
    """Parse a positive integer, as the ``type`` of an argument."""
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError(f'{value!r} is not a positive integer')
    return int(value)


@contextmanager
def one_sentence_errors(
    parser: argparse.ArgumentParser,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError),
) -> Iterator[None]:
    """Print errors in one line on stderr and exit.

    The status is 1 for errors that are not in the arguments: a full disk, data that
    cannot be read, a training that cannot continue. It is 130 after Ctrl-C.

    Args:
        parser: has the name of the program.
        kinds: the classes of other errors, for which the status is 2.
    """
    try:
        yield
    except (DataError, TrainingError, WritingError) as error:
        parser.exit(1, f'{parser.prog}: error: {sentence(error)}\n')
    except kinds as error:
        parser.exit(2, f'{parser.prog}: error: {sentence(error)}\n')
    except KeyboardInterrupt:
        parser.exit(130, f'{parser.prog}: interrupted\n')


@contextmanager
def run_errors(
    parser: argparse.ArgumentParser,
    where: str,
    last: Callable[[], str | None] | None = None,
) -> Iterator[None]:
    """Print the errors of a run that users can cause in one line on stderr and exit.

    Other errors are raised, with their traceback.

    Args:
        parser: has the name of the program.
        where: the file to name if the disk is full and the error does not name one.
        last: for a training, returns the newest intact checkpoint.
    """
    with one_sentence_errors(parser, (SettingError, CheckpointError)):
        try:
            with naming(where, 'those before it are kept'):
                yield
        except WritingError as error:
            if last is None:
                raise
            advice = going_on(last(), 'free disk space and continue')
            raise WritingError(f'{error}; {advice}') from error
        except RuntimeError as error:
            if last is None or not is_lost_peer(error):
                raise
            raise TrainingError(
                'another process of this run has ended or does not answer '
                f'({one_line(error)}); {going_on(last(), "continue")}'
            ) from error


def going_on(whole: str | None, advice: str) -> str:
    """Return how a run can be resumed, as the end of a sentence."""
    if whole is None:
        return 'there is no checkpoint to resume from'
    return f'{whole} is intact: {advice} with --resume'


def is_lost_peer(error: RuntimeError) -> bool:
    """Return whether PyTorch raised an error because another process has ended."""
    is_own = isinstance(error, torch.distributed.DistError)
    return is_own or 'gloo/transport/' in str(error)


def sentence(error: Exception) -> str:
    """Return an error's message, unwrapped if it comes from a worker process."""
    text = str(error)
    if 'in DataLoader worker process' not in text.partition('\n')[0]:
        return text
    last = text.rstrip().splitlines()[-1]
    return last.partition(': ')[2] or last


def read_config(args: argparse.Namespace) -> Config:
    """Read ``args.config`` and apply ``args.cfg_options``.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it cannot be read, or the options do not fit it.
    """
    path = require_file(resolve_config(args.config), 'config', suffix='.py')
    if path.suffix not in CONFIG_SUFFIXES:
        raise ValueError(
            f'config: {args.config!r} is not a config file; give one that ends in .py, '
            '.json or .yml'
        )
    try:
        cfg = Config.fromfile(path)
    except ImportError as error:  # mmengine's message has many lines of sys.path
        raise ValueError(
            f'config: an import in {args.config!r} fails: {first_cause(error)}'
        ) from error
    except (ConfigParsingError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f'config: {args.config!r} cannot be read: {error}') from error
    override(cfg, args)
    return cfg


def override(cfg: Config, args: argparse.Namespace) -> None:
    """Apply ``args.cfg_options`` to a config, and import the modules that they name.

    Raises:
        ValueError: the options do not fit the config, or an import fails.
    """
    try:
        cfg.merge_from_dict(args.cfg_options or {})
        if cfg.get('custom_imports'):  # mmengine imports those of the file only
            import_modules_from_strings(**cfg.custom_imports)
    except (ImportError, KeyError, TypeError) as error:
        raise ValueError(f'--cfg-options: {error}') from error


def read_run_config(args: argparse.Namespace) -> Config:
    """Read the config of a run, with ``work_dir`` and ``launcher`` set.

    Args:
        args: parsed arguments of :func:`add_common_arguments`.

    Raises:
        FileNotFoundError: there is no such config.
        ValueError: it cannot be read, the options do not fit it, or environment
            variables of the launcher are missing.
    """
    cfg = read_config(args)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    cfg.launcher = find_launcher(args.launcher)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return cfg


def require_work_dir(cfg: Config) -> None:
    """Create the work dir of a run, and check that it is writable.

    Raises:
        OSError: it is not.
    """
    require_folder(cfg.work_dir, '--work-dir')


def require_folder(folder: str, option: str) -> None:
    """Create a folder if need be, and check that it is writable.

    Args:
        option: the option's name, for messages.

    Raises:
        OSError: it is not.
    """
    try:
        with naming(f'{option}: a file in {folder!r}', 'nothing was changed'):
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(MIN_SPACE))
    except WritingError:
        raise
    except OSError as error:
        raise OSError(
            f'{option}: {folder!r} cannot be written to '
            f'({os.strerror(error.errno or 0)}); give another folder'
        ) from error


def find_launcher(given: str | None) -> str:
    """Return the given launcher; by default ``'pytorch'`` under torchrun, or 'none'.

    Raises:
        ValueError: ``given`` is ``'pytorch'``, but torchrun's variables are not set.
    """
    if given is None:
        under_torchrun = all(name in os.environ for name in TORCHRUN_VARIABLES)
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
    """Check that a file exists.

    Args:
        given: the path as given by the user.
        name: the argument's name, for the message.
        suffix: ending of the files that the message suggests.

    Raises:
        FileNotFoundError: there is no such file; the message suggests similar ones.
    """
    path = Path(given)
    if path.is_file():
        return path
    problem = 'is a folder, not a file' if path.is_dir() else 'does not exist'
    folder = path if path.is_dir() else path.parent
    candidates = sorted(file.name for file in folder.glob(f'*{suffix}'))
    # Names of configs are long, and users often type only a part of them.
    similar = difflib.get_close_matches(path.name, candidates, n=3, cutoff=0.3)
    if suffix != '.py':  # the last checkpoint is a good guess, the last config is not
        similar = similar or candidates[-1:]
    suggested = [str(folder / name) for name in similar]
    hint = f'; did you mean {" or ".join(suggested)}?' if suggested else ''
    raise FileNotFoundError(f'{name}: {given!r} {problem}{hint}')


def require_checkpoint(given: str, name: str = 'checkpoint') -> str:
    """Check that a checkpoint exists, unless it is a URL; return it."""
    if not is_url(given):
        require_file(given, name, suffix='.pth')
    return given


def require_data(cfg: Config, *loaders: str) -> None:
    """Check that the folders of data loaders exist.

    Args:
        cfg: an mmsegmentation config.
        loaders: keys of ``cfg``, such as ``'train_dataloader'``; those that are not set
            are skipped.

    Raises:
        FileNotFoundError: a folder is missing; the message says how to provide it.
    """
    for loader in filter(cfg.get, loaders):
        for folder in data_folders(cfg[loader]['dataset']):
            if not is_url(folder) and not Path(folder).is_dir():
                raise FileNotFoundError(
                    f'{loader}: the folder {folder!r} does not exist; put the data '
                    'there (tools/dataset_converters/images_to_ade20k.py lays out your '
                    'own images like ADE20K, street_scenes.py beside it draws those of '
                    f'the demo), or set {loader}.dataset.data_root'
                )


def data_folders(dataset: ConfigDict) -> Iterator[str]:
    """Yield the folders of a dataset's config or of the datasets that it wraps."""
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner:
        for one in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from data_folders(one)
        return
    prefixes = dataset.get('data_prefix') or {}
    for key in ('img_path', 'seg_map_path'):
        if prefixes.get(key):
            yield os.path.join(dataset.get('data_root') or '', prefixes[key])


def use_test_time_augmentation(cfg: Config) -> None:
    """Replace the test pipeline and the model with ``tta_pipeline`` and ``tta_model``.

    Raises:
        ValueError: the config does not have both.
    """
    for key in ('tta_pipeline', 'tta_model'):
        if not cfg.get(key):
            raise ValueError(
                f'--tta: the config has no {key}; inherit '
                'mmseg::_base_/default_runtime.py and a dataset of mmseg::_base_'
            )
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.tta_model.module = cfg.model
    cfg.model = cfg.tta_model


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config, of ``runner_type`` or mmengine's default.

    Its logs and drawings raise ``WritingError`` if the disk is full.
    """
    for backend in (cfg.get('visualizer') or {}).get('vis_backends') or ():
        if backend.get('type') == 'LocalVisBackend':
            backend['type'] = 'mmseg_twins.LocalVisBackend'
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    raise_if_full(runner.logger)
    return runner
