"""Every work-around for a library under us, each with the release at which it can go."""

import importlib.metadata
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from packaging.version import Version

from tuneforge.errors import TuneforgeError

OLDEST_DEEPSPEED = Version("0.19.8")
"""Has `managed_gradient_accumulation`."""


def import_bitsandbytes() -> None:
    """Import bitsandbytes without letting it fetch and run a kernel from the hub.

    On CPUs with AVX512-BF16 its import calls `kernels.get_kernel` where that package is installed (bitsandbytes 0.50,
    backends/cpu/ops.py): code from the network that no config asked for. It goes when that becomes opt-in.
    """
    if "bitsandbytes" in sys.modules:
        return
    hidden = sys.modules.get("kernels")
    sys.modules["kernels"] = None  # type: ignore[assignment]
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise TuneforgeError(
            "bitsandbytes-broken",
            f"bitsandbytes cannot be imported: {str(error).strip().splitlines()[0]}",
            fix="install it again: pip install --force-reinstall --no-deps bitsandbytes; then tuneforge doctor",
        ) from error
    finally:
        if hidden is None:
            del sys.modules["kernels"]
        else:
            sys.modules["kernels"] = hidden


def _no_adapter(*args: Any, **kwargs: Any) -> None:
    return None


def _no_kernels(*args: Any, **kwargs: Any) -> bool:
    return False


def _no_pickle(file: Any, *args: Any, **kwargs: Any) -> None:
    raise TuneforgeError(
        "pickled-weights",
        f"{file} is a pickle, which can run any code when it is read",
        fix="use an adapter with adapter_model.safetensors",
    )


@contextmanager
def weights_are_data(code_revision: str | None = None) -> Iterator[None]:
    """Within, transformers and PEFT take tensors and settings from a folder or the hub, and nothing else.

    transformers 5.23 asks on the terminal whether to run a repository's code where a call leaves `trust_remote_code`
    out, and its auto classes load an adapter that lies beside a model, or the base that the adapter names. Where the
    package `kernels` is installed, it runs kernels from the hub that a config.json or an architecture names. Its
    `from_config` takes a repository's code from the newest commit (`code_revision` names another), as its own argument
    for that breaks models without code. PEFT 0.21 reads pickled weights where it finds no safetensors. Each goes when
    an argument can say so.
    """
    from peft.utils import save_and_load
    from transformers import dynamic_module_utils, modeling_utils
    from transformers.integrations import hub_kernels
    from transformers.integrations import peft as integration
    from transformers.models.auto import auto_factory

    load_class: Callable[..., Any] = vars(auto_factory)["get_class_from_dynamic_module"]

    def pinned_class(*args: Any, **kwargs: Any) -> Any:
        return load_class(*args, **(kwargs if code_revision is None else kwargs | {"code_revision": code_revision}))

    shims: list[tuple[Any, str, Any]] = [
        (dynamic_module_utils, "TIME_OUT_REMOTE_CODE", 0),
        (hub_kernels, "is_kernels_available", _no_kernels),
        (modeling_utils, "is_kernels_available", _no_kernels),
        (auto_factory, "find_adapter_config_file", _no_adapter),
        (auto_factory, "get_class_from_dynamic_module", pinned_class),
        (integration, "find_adapter_config_file", _no_adapter),
        (save_and_load, "torch_load", _no_pickle),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in shims]
    for module, name, value in shims:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


def import_deepspeed(kind: str) -> None:
    """Import DeepSpeed for a kind of device (cuda or cpu), without what it would build or say.

    On a CPU it compiles a collective of its own at first use (DeepSpeed 0.19, comm/torch.py), for 36 s and with a
    compiler, Python's headers and ninja; gloo has it. It goes when that becomes opt-in.

    Raises:
        TuneforgeError: it is not installed, or cannot be imported.
    """
    os.environ["DS_ACCELERATOR"] = kind
    fix = "pip install 'tuneforge[deepspeed]', or use strategy=fsdp"
    try:
        found = importlib.metadata.version("deepspeed")
        import deepspeed
    except ImportError as error:
        raise TuneforgeError(
            "no-deepspeed", f"needs DeepSpeed, which cannot be imported: {error}", path="strategy", fix=fix
        ) from error
    if Version(found) < OLDEST_DEEPSPEED:
        # It would count micro-batches itself, in silence, and step after each of them.
        message = f"needs DeepSpeed {OLDEST_DEEPSPEED} or newer, and {found} is installed"
        raise TuneforgeError("no-deepspeed", message, path="strategy", fix=fix)
    if kind == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel(logging.ERROR)


def enable_checkpointing(model: Any, selective: bool = False) -> None:
    """Recompute each layer in the backward pass, all of it or all but its products; without reentrant autograd.

    transformers 5.23 renamed the method and warns at the old name; 5.17 has the old one only. It goes when the oldest
    supported transformers has the new name.
    """
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        from tuneforge.activations import keep_products

        options["context_fn"] = keep_products(model.config.get_text_config().hidden_size)
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def give_template_clock(template: str, strftime_now: Callable[[str], str]) -> None:
    """Replace the clock of a chat template.

    transformers 5.23 gives each template the function `strftime_now`, which reads today's date, and turns functions
    among the arguments of `apply_chat_template` into text. Compiled templates are cached, and this sets the function of
    the cached one. It goes when the date can be an argument.
    """
    from transformers.utils import chat_template_utils

    chat_template_utils._compile_jinja_template(template).globals["strftime_now"] = strftime_now


def compile_layers(model: Any) -> int:
    """Compile each decoder layer on its own, in place; returns how many.

    Regional compilation: one graph serves all equal layers, and hooks around them keep working.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for layer in layers:
        layer.compile()
    return len(layers)


def refused_by_peft(model_type: str) -> frozenset[str]:
    """Names of modules of Mamba models that PEFT has no LoRA for: its list is inside a function of its own (0.21)."""
    kinds = ("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h")
    return frozenset({"out_proj", "conv1d"} if model_type in kinds else ())


def is_4bit(module: Any) -> bool:
    """Whether the module is a quantised layer that must never be put into eval mode.

    In eval mode bitsandbytes 0.50 repacks 4-bit weights in place on CPUs with AVX512-BF16 (`Linear4bit.forward`), and
    the next training step computes with other numbers, without an error. It goes when the repacking is undone.
    """
    from bitsandbytes.nn.modules import Linear4bit

    return isinstance(module, Linear4bit)
