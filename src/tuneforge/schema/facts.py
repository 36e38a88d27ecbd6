"""What a method's class says of itself, read from its source: rules and plans need it, and import no method.

The facts are literal class attributes. `tuneforge.method.Method` declares them with their defaults, so that a new
method, or a plugin's, says what is different about it in its own file and nowhere else.
"""

from collections.abc import Mapping
from typing import Any

from tuneforge.schema.signature import read_signature

_DECLARED = "tuneforge.method.Method"


def method_facts(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts of the method that a config's `method` node names: those of `Method`, and what its class changes."""
    return {**read_signature(_DECLARED).facts, **read_signature(node["_target_"]).facts}
