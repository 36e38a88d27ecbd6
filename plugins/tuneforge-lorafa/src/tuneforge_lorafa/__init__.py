"""LoRA-FA for tuneforge: `method=lorafa`."""
