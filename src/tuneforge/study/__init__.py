"""Sweeps: a study of Optuna over the config tree, trial by trial, each a run as any other."""
