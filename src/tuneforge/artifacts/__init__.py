"""What a run leaves behind: its folder, metrics, adapter, record and report."""
