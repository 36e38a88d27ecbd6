"""From rows on disk to packed batches with a loss mask."""
