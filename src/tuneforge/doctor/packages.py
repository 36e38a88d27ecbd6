"""Python, tuneforge and the packages around it: what is installed, in which version, and whether it imports."""

import json
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import tuneforge
from tuneforge.doctor.check import Check, fail, missing, ok, pip_install, warn
from tuneforge.doctor.facts import IMPORT, Step

MODULES = {
    "hydra-core": "hydra",
    "hydra-optuna-sweeper": "hydra_plugins.hydra_optuna_sweeper",
    "liger-kernel": "liger_kernel",
    "nvidia-ml-py": "pynvml",
    "pyyaml": "yaml",
}
"""Packages whose module has another name."""


@dataclass(frozen=True)
class Part:
    """An optional package."""

    wanted: str
    """As pip takes it, where no extra of ours brings it."""
    does: str
    gpu_only: bool = False
    pip_options: str = ""

    @property
    def package(self) -> str:
        """Its name alone."""
        return Requirement(self.wanted).name


PARTS = (
    Part("pyarrow", "reads Parquet files"),
    Part("deepspeed", "splits training over devices with ZeRO"),
    Part("datasets", "reads data sets of the hub"),
    Part("cmaes", "searches with CMA-ES under --multirun"),
    Part("scipy", "searches with Gaussian processes under --multirun"),
    Part("wandb", "logs to Weights & Biases"),
    Part("mlflow-skinny", "logs to MLflow"),
    Part("flash-attn", "attention kernels", gpu_only=True, pip_options="--no-build-isolation"),
    Part("liger-kernel", "fused kernels", gpu_only=True),
)


def requirements() -> list[Requirement]:
    """What the installed tuneforge declares that it needs; empty when it is not installed."""
    try:
        declared = map(Requirement, metadata.requires("tuneforge") or [])
    except metadata.PackageNotFoundError:
        return []
    return [r for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]


def module_of(package: str) -> str:
    """What `import` calls it."""
    return MODULES.get(package.lower(), package.lower().replace("-", "_"))


def python() -> Check:
    """The running Python against `requires-python`."""
    here = platform.python_version()
    try:
        wanted = metadata.metadata("tuneforge")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return ok("python", here)  # `installed` says that tuneforge is not
    if SpecifierSet(wanted).contains(here, prereleases=True):
        return ok("python", f"{here} ({wanted})")
    fix = "make an environment with a supported one: python3.12 -m venv .venv && .venv/bin/pip install -e ."
    return fail("python", f"{here}, and tuneforge wants {wanted}", fix)


def installed() -> Check:
    """Which tuneforge this is, and whether what pip knows of it is up to date."""
    try:
        known = metadata.version("tuneforge")
        origin = json.loads(metadata.distribution("tuneforge").read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        fix = f"in the checkout: {pip_install('.', options='-e')}"
        return fail("tuneforge", f"{tuneforge.__version__}, on the path but not installed: its option files are", fix)
    editable = origin.get("dir_info", {}).get("editable", False)
    where = origin.get("url", "").removeprefix("file://")
    found = f"{tuneforge.__version__}" + (f" (editable, {where})" if editable else "")
    if known == tuneforge.__version__:
        return ok("tuneforge", found)
    fix = f"in {where or 'the checkout'}: {pip_install('.', options='-e')}"
    return warn("tuneforge", f"{found}, and pip installed {known}: its requirements may be outdated", fix)


def required(steps: Mapping[str, Step]) -> list[Check]:
    """One line for all packages that are as they should be, and one for each that is not."""
    good: list[str] = []
    bad: list[Check] = []
    for requirement in requirements():
        name, found = f"package {requirement.name}", _version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        module = module_of(requirement.name)
        error = steps[IMPORT + module].error
        if found is None:
            bad.append(fail(name, f"not installed, and {wanted} is needed", pip_install(wanted)))
        elif not requirement.specifier.contains(found, prereleases=True):
            bad.append(fail(name, f"{found}, and {wanted} is needed", pip_install(wanted)))
        elif error:
            follows = module != "torch" and bool(steps[f"{IMPORT}torch"].error)
            fix = "mend the package torch first" if follows else _reimport(wanted, module)
            bad.append(fail(name, f"{found} does not import: {error}", fix))
        else:
            good.append(f"{requirement.name} {found}")
    return [*([ok("packages", ", ".join(good))] if good else []), *bad]


def _reimport(wanted: str, module: str) -> str:
    """What makes an installed package import again."""
    for shadow in (Path(f"{module}.py"), Path(module, "__init__.py")):
        if shadow.exists():  # `python -m` looks into the current folder first
            return f"rename {shadow.absolute()}: it stands in front of the package"
    return pip_install(wanted, options="--force-reinstall --no-deps")


def optional(has_gpu: bool) -> Iterator[Check]:
    """The parts that a run may name and that nobody needs to have."""
    extras = _extras()
    for part in PARTS:
        found = _version(part.package)
        extra, specifier = extras.get(part.package, ("", SpecifierSet()))
        fix = pip_install(f"tuneforge[{extra}]" if extra else part.wanted, options=part.pip_options)
        if found is None and part.gpu_only and not has_gpu:
            yield ok(part.package, f"not installed; {part.does} for GPUs, and there is none here")
        elif found is None:
            yield missing(part.package, f"not installed; {part.does}", fix)
        elif not specifier.contains(found, prereleases=True):
            yield warn(part.package, f"{found}, and {part.package}{specifier} is needed; {part.does}", fix)
        else:
            yield ok(part.package, found)


def hub_kernels() -> Check:
    """The package `kernels`, through which bitsandbytes would fetch and run code at its import."""
    found = _version("kernels")
    if found is None:
        return ok("kernels", "not installed: nothing fetches compiled code from the hub")
    return ok("kernels", f"{found}; bitsandbytes would fetch code through it, and tuneforge does not let it")


def _extras() -> dict[str, tuple[str, SpecifierSet]]:
    """Package -> the extra of ours that brings it, and its range; without the developers' extra."""
    try:
        names = metadata.metadata("tuneforge").get_all("Provides-Extra") or []
    except metadata.PackageNotFoundError:
        return {}
    found: dict[str, tuple[str, SpecifierSet]] = {}
    for extra in names:
        for requirement in _brought_by(extra):
            if extra != "dev":
                found.setdefault(requirement.name, (extra, requirement.specifier))
    return found


def _brought_by(extra: str) -> Iterable[Requirement]:
    for requirement in map(Requirement, metadata.requires("tuneforge") or []):
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield requirement


def _version(package: str) -> str | None:
    """Its version; None when it is not installed. Not `find_spec`: a folder `wandb/` of old logs would count."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
