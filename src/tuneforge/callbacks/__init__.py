"""Lightning callbacks by the names of conf/callbacks."""
