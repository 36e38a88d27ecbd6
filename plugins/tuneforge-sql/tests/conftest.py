"""The plugin is tested as it lies here, without being installed."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "src"))


@pytest.fixture(autouse=True)
def only_this_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other plugins in the working directory are left out."""
    monkeypatch.setenv("TUNEFORGE_PLUGIN_PATH", str(ROOT.parent))
    monkeypatch.setenv("TUNEFORGE_PLUGINS", "sql")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
