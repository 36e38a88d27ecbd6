"""Search spaces in which one value asks for others, for `hydra.sweeper.custom_search_space`."""

import optuna
from omegaconf import DictConfig

RANKED = ("lora", "rslora", "dora")
"""Methods whose rank and dropout are searched where the method is."""


def methods(config: DictConfig, trial: optuna.trial.Trial) -> None:
    """A rank and a dropout for the methods that have them: sweeps/methods.yaml."""
    if trial.params["method"] in RANKED:
        trial.suggest_categorical("method.r", [8, 16, 32])
        trial.suggest_categorical("method.lora_dropout", [0.0, 0.05, 0.1])
