"""The commands, one module each; the scripts under ``tools`` are two lines each."""
