"""What this machine can run and what is missing: one small function a finding, none of which trusts the next.

Libraries are imported in a child process (`probe`), so that a broken one is a finding and not the end of the doctor.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from tuneforge.compose import Composed
from tuneforge.doctor import device, environment, host, packages, project
from tuneforge.doctor.check import Check, warn
from tuneforge.doctor.facts import IMPORT, Step, ask_libraries, ask_smi, torch_of
from tuneforge.masking import mask

__all__ = ["Check", "diagnose"]


def diagnose(compose: Callable[[], Composed]) -> list[Check]:
    """Look at everything; `compose` makes the config that is to run."""
    steps = ask_libraries([packages.module_of(r.name) for r in packages.requirements()])
    config, output_root = project.default_config(compose)
    found = [
        packages.python(),
        packages.installed(),
        *packages.required(steps),
        config,
        project.bundled_model(),
        project.library_source(),
        *_devices(steps),
        *_host(output_root),
        environment.hub(),
        environment.variables(),
        *packages.optional(has_gpu=bool(steps["torch"].facts.get("gpus"))),
        packages.hub_kernels(),
    ]
    return [replace(check, found=mask(check.found), fix=mask(check.fix)) for check in found]


def _devices(steps: dict[str, Step]) -> Iterator[Check]:
    torch, smi = torch_of(steps), ask_smi()
    yield device.driver(smi)
    if torch is None:
        yield device.torch_unknown(steps.get(f"{IMPORT}torch", Step()), steps["torch"])
    else:
        yield device.torch_build(torch, smi)
        yield device.device(torch, steps["compute"], smi)
        yield device.bf16(torch)
        yield device.four_bit(steps["nf4"])
        yield device.compiling(torch)
        yield device.hardware(torch)
        yield host.gloo(steps["gloo"])


def _host(output_root: Path) -> Iterator[Check]:
    yield host.output_folder(output_root)
    looks = {
        "hub cache": host.hub_cache,
        "shared memory": host.shared_memory,
        "memory": host.memory,
        "cores": host.cores,
        "open files": host.open_files,
        "loopback": host.loopback,
    }
    for name, look in looks.items():
        try:
            yield look()
        except OSError as error:  # a sandbox that hides /proc or /sys
            yield warn(name, f"could not be looked at: {error}", "nothing to mend if runs work")
