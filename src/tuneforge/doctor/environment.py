"""The environment variables that change what runs do; secrets are told by name only."""

import os
from pathlib import Path

from tuneforge.doctor.check import Check, ok, warn

SHOWN = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF", "TUNEFORGE_DEBUG", "TUNEFORGE_PLUGINS")
"""Variables whose values are no secrets; of any other TUNEFORGE_* the name alone is shown."""
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
YES = ("1", "ON", "YES", "TRUE")


def hub() -> Check:
    """How the hub is reached: whether there is a token, never which, and whether it is asked at all."""
    env = os.environ
    home = Path(env.get("HF_HOME") or Path(env.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface").expanduser()
    kept = Path(env.get("HF_TOKEN_PATH") or home / "token").expanduser()
    name = next((n for n in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN") if env.get(n)), "")
    token = (
        f"{name} is set" if name else f"token in {kept}" if kept.is_file() else "no token (gated models need HF_TOKEN)"
    )
    offline = env.get("HF_HUB_OFFLINE", "").upper() in YES
    return ok("hub", token + ("; HF_HUB_OFFLINE: nothing is fetched" if offline else ""))


def variables() -> Check:
    """What is set, and what an earlier launcher left behind."""
    left = [name for name in RANKS if name in os.environ]
    if left:
        found = f"{', '.join(left)} set: a run would take itself for one process of several and wait for the others"
        return warn("environment", found, f"unset {' '.join(left)} MASTER_ADDR MASTER_PORT")
    names = [n for n in SHOWN if n in os.environ]
    others = sorted(n for n in os.environ if n.startswith("TUNEFORGE_") and n not in SHOWN)
    told = [f"{n}={os.environ[n]}" for n in names] + [f"{n} is set" for n in others]
    return ok("environment", ", ".join(told) or "no variable that changes a run")
