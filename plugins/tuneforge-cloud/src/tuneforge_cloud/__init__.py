"""Hardware profiles of rented machines: option files only."""
