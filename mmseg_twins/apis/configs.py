"""Find the package's configs, and read configs without running code in them."""

from __future__ import annotations

import ast
from pathlib import Path

from mmengine.config import Config

from ..errors import SettingError

PACKAGE = Path(__file__).parents[1]
# Of an installed package, and of a checkout that is not installed.
FOLDERS = (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs')


def find_config(name: str) -> Path | None:
    """Return the path of one of the package's configs; None if it does not exist.

    Args:
        name: such as ``twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py``, with or
            without ``.py`` and the subfolder that it is in.
    """
    file = name if name.endswith('.py') else f'{name}.py'
    for folder in FOLDERS:
        for path in (folder / file, *folder.glob(f'[!_]*/{file}')):
            if path.is_file() and folder.resolve() in path.resolve().parents:
                return path
    return None


def resolve_config(given: str) -> str:
    """Return the path of a config, given its path or its name in the package.

    An existing path takes precedence. If there is no such config, the argument is
    returned unchanged.
    """
    found = None if Path(given).exists() else find_config(given)
    return str(found or given)


def read_plain_config(path: Path) -> Config:
    """Read a config of plain values, as mmengine dumps it, without running it.

    Args:
        path: a file of statements ``NAME = VALUE``, whose values are literals and
            ``dict(...)``.

    Raises:
        SettingError: the file has other statements or values.
    """
    try:
        tree = ast.parse(path.read_text(encoding='utf-8'))
        values = {}
        for statement in tree.body:
            (target,) = statement.targets
            values[target.id] = plain_value(statement.value)
        return Config(values)
    except (AttributeError, KeyError, RecursionError, SyntaxError, ValueError) as error:
        raise SettingError(
            f'{path} is not a config of plain values ({error}); such configs are '
            "written by save_pretrained and by mmengine's runner"
        ) from None


def plain_value(node: ast.expr) -> object:
    """Evaluate an expression of literals and ``dict(...)``."""
    if isinstance(node, ast.Call):
        if ast.unparse(node.func) != 'dict' or node.args:
            raise ValueError(f'line {node.lineno} calls more than dict(...)')
        return {str(word.arg): plain_value(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict):
        keys = [ast.literal_eval(key) for key in node.keys if key is not None]
        return dict(zip(keys, map(plain_value, node.values), strict=True))
    if isinstance(node, ast.List):
        return [plain_value(item) for item in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(plain_value(item) for item in node.elts)
    return ast.literal_eval(node)
