"""Configs of other fine-tuning tools, read as ours: one module a dialect, each with one table of its keys."""
