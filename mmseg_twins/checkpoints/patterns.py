"""Rename rules: anchored name templates, applied to state dicts in both directions.

A template is a parameter's name with slots in braces, such as
``'blocks.{i}.{gsa}.attn.q.{p}'``. It matches whole names only, and its dots literally.
The text that matches a slot on one side of a rule replaces the slot of the same name on
the other side. The rules themselves are data, in :mod:`.layouts`.
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
    """Return a template as a regular expression, for ``fullmatch``.

    Args:
        template: a name with slots.
        family: ``'pcpvt'`` or ``'svt'``; which blocks ``{gsa}`` and ``{lsa}`` match
            depends on it.
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
    """One line of a table: the names of a tensor in the source and in the target.

    Attributes:
        sources: the source's name, or the names of several tensors whose rows are
            concatenated in this order.
        target: the target's name.
        shares: how many parts of the target's rows each source has.
    """

    sources: tuple[str, ...]
    target: str
    shares: tuple[int, ...] = (1,)


def rename(source: str, target: str) -> Rule:
    """Return the rule for a single tensor."""
    return Rule((source,), target)


class Renaming:
    """A table of rules for one family, applied forwards and backwards.

    Args:
        family: ``'pcpvt'`` or ``'svt'``.
    """

    def __init__(self, rules: Iterable[Rule], family: str) -> None:
        rules = tuple(rules)
        self._sources = [
            (compile_template(source, family), rule, part)
            for rule in rules
            for part, source in enumerate(rule.sources)
        ]
        self._targets = [
            (compile_template(rule.target, family), rule) for rule in rules
        ]

    def target(self, name: str) -> str | None:
        """Return the target's name for a source's name; None if no rule matches."""
        found = self._find(name)
        return found[0] if found else None

    def _find(self, name: str) -> tuple[str, Rule, int] | None:
        for pattern, rule, part in self._sources:
            match = pattern.fullmatch(name)
            if match:
                return rule.target.format(**match.groupdict()), rule, part
        return None

    def _find_rule(self, target: str) -> tuple[Rule, dict[str, str]]:
        for pattern, rule in self._targets:
            match = pattern.fullmatch(target)
            if match:
                return rule, match.groupdict()
        raise KeyError(target)

    def forwards(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename source to target; tensors that are not merged stay the same objects.

        Raises:
            KeyError: no rule matches a name, or a part of a merged tensor is missing.
        """
        parts: dict[str, dict[int, Tensor]] = {}
        numbers: dict[str, int] = {}
        for name, tensor in state.items():
            found = self._find(name)
            if found is None:
                raise KeyError(name)
            target, rule, part = found
            parts.setdefault(target, {})[part] = tensor
            numbers[target] = len(rule.sources)
        return {
            target: found[0]
            if numbers[target] == 1
            else torch.cat([found[part] for part in range(numbers[target])])
            for target, found in parts.items()
        }

    def backwards(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename target to source: the inverse of :meth:`forwards`.

        Raises:
            KeyError: no rule matches a name.
        """
        result = {}
        for name, tensor in state.items():
            rule, slots = self._find_rule(name)
            pieces = [tensor]
            if len(rule.sources) > 1:
                unit = tensor.shape[0] // sum(rule.shares)
                # Copies, so that no piece keeps the whole tensor in memory.
                pieces = [
                    piece.clone()
                    for piece in tensor.split([unit * share for share in rule.shares])
                ]
            for source, piece in zip(rule.sources, pieces, strict=True):
                result[source.format(**slots)] = piece
        return result
