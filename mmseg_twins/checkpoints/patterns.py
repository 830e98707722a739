"""Rename rules: anchored name templates, applied to state dicts in both directions.

A template is a parameter's name with slots in braces, such as
``'blocks.{i}.{gsa}.attn.q.{p}'``. It matches whole names only, and its dots are dots.
What fills a slot on one side of a rule fills the slot of the same name on the other.
The rules themselves are data and stand in :mod:`.rules`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from string import Formatter

import torch
from torch import Tensor

SLOTS = {
    'i': r'\d+',  # a number: stage, branch, level
    'j': r'\d+',  # a second number: block
    'p': r'[a-z_]+',  # the parameter: weight, bias, running_mean, ...
    'rest': r'.+',
}
# Which blocks of a stage attend globally (GSA) and which within windows (LSA).
BLOCK_SLOTS = {
    'pcpvt': {'gsa': r'\d+', 'lsa': r'(?!)'},
    'svt': {'gsa': r'\d*[13579]', 'lsa': r'\d*[02468]'},
}


def compile_template(template: str, family: str) -> re.Pattern:
    """A template as a regular expression, for ``fullmatch``.

    Args:
        template: a name with slots.
        family: ``'pcpvt'`` or ``'svt'``, which decides about ``{gsa}`` and ``{lsa}``.
    """
    slots = SLOTS | BLOCK_SLOTS[family]
    return re.compile(
        ''.join(
            re.escape(literal) + (f'(?P<{slot}>{slots[slot]})' if slot else '')
            for literal, slot, _, _ in Formatter().parse(template)
        )
    )


@dataclass(frozen=True)
class Rule:
    """One line of a table: how tensors are called here and there.

    Attributes:
        sources: the source's name, or the names of several tensors whose rows are
            concatenated, in this order.
        target: the target's name.
        shares: how many parts of the target's rows each source has.
    """

    sources: tuple[str, ...]
    target: str
    shares: tuple[int, ...] = (1,)


def rename(source: str, target: str) -> Rule:
    """One tensor under another name, or under the same."""
    return Rule((source,), target)


def concatenate(
    sources: tuple[str, ...], *, shares: tuple[int, ...], target: str
) -> Rule:
    """Several tensors that are one tensor in the target; splits on the way back."""
    return Rule(sources, target, shares)


@dataclass(frozen=True)
class Renamed:
    """A state dict after renaming.

    Attributes:
        state: the tensors under their new names.
        origins: for each new name the names that it was made from.
    """

    state: dict[str, Tensor]
    origins: dict[str, tuple[str, ...]]


class Renaming:
    """A table of rules for one family, applied forwards and backwards.

    Args:
        rules: the table.
        family: ``'pcpvt'`` or ``'svt'``.
    """

    def __init__(self, rules: Iterable[Rule], family: str) -> None:
        rules = tuple(rules)
        self._forwards = [
            (compile_template(source, family), rule, part)
            for rule in rules
            for part, source in enumerate(rule.sources)
        ]
        self._backwards = [
            (compile_template(rule.target, family), rule) for rule in rules
        ]

    def target(self, name: str) -> str | None:
        """What a source's tensor becomes, or a part of; None if no rule takes it."""
        found = self._find(name)
        return found[0] if found else None

    def _find(self, name: str) -> tuple[str, Rule, int] | None:
        for pattern, rule, part in self._forwards:
            match = pattern.fullmatch(name)
            if match:
                return rule.target.format(**match.groupdict()), rule, part
        return None

    def _find_target(self, name: str) -> tuple[Rule, dict[str, str]]:
        for pattern, rule in self._backwards:
            match = pattern.fullmatch(name)
            if match:
                return rule, match.groupdict()
        raise KeyError(name)

    def is_target(self, name: str) -> bool:
        """Return whether a name is one that the table leads to."""
        return any(pattern.fullmatch(name) for pattern, _ in self._backwards)

    def forwards(self, state: Mapping[str, Tensor]) -> Renamed:
        """Renames source to target.

        Args:
            state: tensors in the source's layout, complete.

        Raises:
            KeyError: a name that no rule takes, or a part without the other parts.
        """
        parts: dict[str, dict[int, str]] = {}
        rules: dict[str, Rule] = {}
        for name in state:
            found = self._find(name)
            if found is None:
                raise KeyError(name)
            target, rules[target], part = found
            parts.setdefault(target, {})[part] = name
        origins = {
            target: tuple(parts[target][part] for part in range(len(rule.sources)))
            for target, rule in rules.items()
        }
        return Renamed(
            {
                target: state[names[0]]
                if len(names) == 1
                else torch.cat([state[name] for name in names])
                for target, names in origins.items()
            },
            origins,
        )

    def backwards(self, state: Mapping[str, Tensor]) -> Renamed:
        """Renames target to source: the inverse of :meth:`forwards`.

        Args:
            state: tensors in the target's layout.

        Raises:
            KeyError: a name that no rule leads to.
        """
        renamed = Renamed({}, {})
        for name, tensor in state.items():
            rule, slots = self._find_target(name)
            pieces = [tensor]
            if len(rule.sources) > 1:
                unit = tensor.shape[0] // sum(rule.shares)
                # Pieces of their own, so that none keeps the whole in memory.
                pieces = [
                    piece.clone()
                    for piece in tensor.split([unit * share for share in rule.shares])
                ]
            for source, piece in zip(rule.sources, pieces, strict=True):
                source = source.format(**slots)
                renamed.state[source] = piece
                renamed.origins[source] = (name,)
        return renamed
