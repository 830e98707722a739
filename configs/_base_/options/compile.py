"""Compiles forward and backward passes; the first iteration takes minutes."""

custom_hooks = [dict(type='mmseg_twins.CompileHook')]
