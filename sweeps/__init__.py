"""Every sweep: one file = a space to search, how, how long, and for what. Picked as +sweep=NAME."""
