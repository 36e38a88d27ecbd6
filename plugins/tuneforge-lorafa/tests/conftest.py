"""The plugin's package can be imported, installed or not."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "src"))
