"""Third-party packages that add options: found without importing them, trusted by name, imported by the run that asks.

`discovery` finds them, `registry` holds those of this process, `inspection` tells what is wrong with one.
"""
