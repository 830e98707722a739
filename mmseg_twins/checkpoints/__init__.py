"""Read, convert, verify and write checkpoints of every Twins layout."""
