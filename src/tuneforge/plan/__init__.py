"""What a run will need, worked out before any weight is loaded: no torch, no network, no GPU."""
