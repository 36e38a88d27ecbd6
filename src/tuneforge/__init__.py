"""tuneforge: a handful of composable choices become a safe, fast, reproducible LLM fine-tune."""

__version__ = "0.1.0"
