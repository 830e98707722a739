"""Find the package's configs, and read configs of plain values without running them."""

from __future__ import annotations

import ast
from pathlib import Path

from mmengine.config import Config

from ..errors import SettingError

PACKAGE = Path(__file__).parents[1]
# In a wheel and an editable install; in a checkout that is not installed.
FOLDERS = (PACKAGE / '.mim' / 'configs', PACKAGE.parent / 'configs')


def find_config(name: str) -> Path | None:
    """Return the path of one of the package's configs; None if there is no such one.

    Args:
        name: such as ``twins_svt-s_uperhead_8x2_512x512_160k_ade20k.py``, with or
            without the ending; configs of a subfolder have it in front.
    """
    file = name if name.endswith('.py') else f'{name}.py'
    for folder in FOLDERS:
        path = folder / file
        if path.is_file() and folder.resolve() in path.resolve().parents:
            return path
    return None


def resolve_config(given: str) -> str:
    """Return the path of a config that is given by its path or its name.

    What exists comes first, then the package's configs. If there is no such config, the
    result is what was given.
    """
    found = None if Path(given).exists() else find_config(given)
    return str(found or given)


def read_plain_config(path: Path) -> Config:
    """Read a config that assigns plain values, as mmengine writes it, and run nothing.

    Args:
        path: of a file of lines ``NAME = VALUE``, with values of literals and
            ``dict(...)``.

    Raises:
        SettingError: the file has anything else.
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
            f'{path} is no config of plain values ({error}); save_pretrained and '
            "mmengine's runner write such configs"
        ) from None


def plain_value(node: ast.expr) -> object:
    """Return the value of an expression of literals and ``dict(...)``."""
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
