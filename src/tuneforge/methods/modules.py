"""Which modules of a model a method may change, and how names typed by a user are matched against them."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneforge import bounded
from tuneforge.compat import refused_by_peft
from tuneforge.errors import TuneforgeError, did_you_mean, near
from tuneforge.heads import head_modules, in_head

ALL_LINEAR = "all-linear"
"""Every linear layer but the head, as `linear_modules` has them."""

_EXPERT_COUNT = re.compile(r"(moe_)?(num|n)_(local_|routed_)?experts")
"""Keys of a config, or of one inside it (DBRX's ffn_config), that count the experts of a mixture's layer."""


def linear_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Full name -> linear module (GPT-2's Conv1D among them) that an adapter can stand beside.

    Left out are the output head, classification heads, the routers and gates of a mixture, the parts of a multimodal
    model that text does not pass through, and what PEFT refuses to adapt.
    """
    refused = refused_by_peft(model.config.model_type) if isinstance(model, PreTrainedModel) else frozenset()
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    heads = head_modules(model)
    unused = {*routers(model), *beyond_text(model)}
    linear = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    free = {n: m for n, m in linear.items() if not in_head(n, heads) and n not in unused}
    return {n: m for n, m in free.items() if n.rpartition(".")[2] not in refused}


def linear_shape(module: nn.Module) -> tuple[int, int]:
    """Widths of a linear module, whose weight may be packed into another shape."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    rows, columns = module.get_parameter("weight").shape
    return rows, columns


def num_layers(model: PreTrainedModel) -> int:
    """Layers of the language model.

    Raises:
        TuneforgeError: its config does not count them.
    """
    text = model.config.get_text_config()
    if getattr(text, "num_hidden_layers", None) is None:
        raise TuneforgeError(
            "method-not-for-model",
            f"layers of {text.model_type} cannot be chosen by number: its config does not count them",
            path="method",
            fix="use method=lora without method.layers_to_transform",
        )
    return int(text.num_hidden_layers)


def transposed(model: nn.Module) -> bool:
    """Whether the linear layers are Conv1D (GPT-2), whose weights PEFT calls fan_in_fan_out."""
    return any(isinstance(m, Conv1D) for m in linear_modules(model).values())


def linear_names(model: nn.Module) -> set[str]:
    """The last parts of the names of the linear modules; two where a module only wraps one: `q_proj.linear`."""
    names = set()
    for name in linear_modules(model):
        parent, _, last = name.rpartition(".")
        wrapped = len(list(model.get_submodule(parent).children())) == 1
        names.add(f"{parent.rpartition('.')[2]}.{last}" if wrapped and parent else last)
    return names


def shortest_ends(chosen: Iterable[str], every: Iterable[str]) -> list[str]:
    """The shortest ends of the chosen full names that no other of `every` name has; sorted, each once.

    PEFT matches a name in a list of targets against the ends of full names.
    """
    wanted = set(chosen)
    taken = {end for name in every if name not in wanted for end in _ends(name)}
    found = (next((end for end in _ends(name) if end not in taken), name) for name in wanted)
    return sorted(set(found))


def _ends(name: str) -> Iterable[str]:
    parts = name.split(".")
    return (".".join(parts[-k:]) for k in range(1, len(parts) + 1))


# ---- mixtures of experts


def num_experts(model: nn.Module) -> int:
    """Experts in a layer of a mixture, as the model's config has them; 0: the model is none."""
    if not isinstance(model, PreTrainedModel):
        return 0
    return _count_in(model.config.get_text_config().to_dict())


def _count_in(config: Mapping[str, Any]) -> int:
    own = [v for k, v in config.items() if _EXPERT_COUNT.fullmatch(str(k)) and isinstance(v, int)]
    inner = [_count_in(v) for v in config.values() if isinstance(v, Mapping)]
    count = max([*own, *inner], default=0)
    return count if count > 1 else 0


def fused_experts(model: nn.Module) -> list[str]:
    """Full names of weights that hold all experts of a layer, [experts, out, in]: parameters, and no linear modules.

    Other parameters have three dimensions too (RWKV's time_mix, the probe of an image encoder), so the first one must
    be the number of experts.
    """
    count = num_experts(model)
    found = []
    for name, module in model.named_modules() if count else ():
        stacked = {own: p for own, p in module.named_parameters(recurse=False) if p.ndim == 3}
        if not isinstance(module, _ConvNd) and any(p.shape[0] == count for p in stacked.values()):
            found += [f"{name}.{own}" for own in stacked]
    return found


def routers(model: nn.Module) -> list[str]:
    """Full names of the linear modules of a mixture that send tokens to experts, or weigh a shared expert.

    They are as wide as there are experts, or 1 wide, and stand in the block that holds the experts: in itself, or last
    in a part of it beside the experts, whose other layers are the router's too. Trained with an adapter they would move
    tokens between frozen experts.
    """
    count = num_experts(model)
    if not count:
        return []
    fused = fused_experts(model)
    # One more where a token may skip the experts (Zaya).
    widths = {1, count, count + 1, *(model.get_parameter(name).shape[0] for name in fused)}
    holders = {name.rpartition(".")[0] for name in fused}
    holders |= {n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    blocks = {holder.rpartition(".")[0] for holder in holders}
    parts: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        around = [b for b in blocks if name.startswith(f"{b}.")] if isinstance(module, nn.Linear) else []
        if around:
            block = max(around, key=len)
            parts.setdefault(f"{block}.{name.removeprefix(f'{block}.').partition('.')[0]}", []).append(name)
    return [
        name
        for part, names in parts.items()
        if part not in holders and linear_shape(model.get_submodule(names[-1]))[1] in widths
        for name in names
    ]


# ---- models of several modalities


def beyond_text(model: nn.Module) -> set[str]:
    """Full names of the modules of a multimodal model that text does not pass through; empty for any other model.

    Nothing in them gets a gradient from text. Under DDP that ends a run.
    """
    if not isinstance(model, PreTrainedModel):
        return set()
    decoder, every = model.get_decoder(), dict(model.named_modules())
    towers = [n for n, m in every.items() if n and isinstance(m, PreTrainedModel) and _of_another_sense(m, model)]
    # Fuyu has a config of its text part, and reads images with one linear layer beside it.
    if not towers and model.config.get_text_config() is model.config:
        return set()
    start = next((n for n, m in every.items() if m is decoder), "")
    prefix = f"{start}." if start else ""
    # An image encoder may lie inside the decoder, in the module that embeds tokens (Phi-4).
    inside = {f"{prefix}{t.removeprefix(prefix).split('.')[0]}" for t in towers if t.startswith(prefix)}
    head, heads = model.get_output_embeddings(), head_modules(model)
    return {
        n
        for n, m in every.items()
        if m is not head
        and not in_head(n, heads)
        and not f"{start}.".startswith(f"{n}." if n else "")
        and (not n.startswith(prefix) or in_head(n, list(inside)))
    }


def _of_another_sense(part: PreTrainedModel, model: PreTrainedModel) -> bool:
    """Whether a model inside of a model reads images or sound, and no text."""
    others = [getattr(model.config, name, None) for name in ("vision_config", "audio_config")]
    return "text" not in part.input_modalities or type(part.config) in [type(o) for o in others if o is not None]


# ---- names that a user types


def matching(model: nn.Module, wanted: str | list[str]) -> dict[str, list[str]]:
    """Each name (or the one pattern) that was typed -> full names of the modules that it matches, as PEFT matches."""
    modules = [name for name, _ in model.named_modules() if name]
    if isinstance(wanted, str):
        return {wanted: bounded.matching(wanted, modules, "method.target_modules")}
    return {w: [n for n in modules if n == w or n.endswith(f".{w}")] for w in wanted}


def check_targets(model: PreTrainedModel, wanted: str | list[str], key: str = "method.target_modules") -> None:
    """Refuse names that match no module, which PEFT lets pass as long as one of them matches.

    Raises:
        TuneforgeError: with the near names, and all linear modules of the model.
    """
    if not wanted:
        raise TuneforgeError("unknown-module", "names no module", path=key, fix=_known(model, ""))
    if wanted == [ALL_LINEAR] or (isinstance(wanted, str) and near(wanted, [ALL_LINEAR])):
        message = f"{wanted!r} matches no module of this model"
        raise TuneforgeError("unknown-module", message, path=key, fix=f"did you mean {key}={ALL_LINEAR}, in no list?")
    found = matching(model, wanted)
    if isinstance(wanted, str) and not found[wanted] and matching(model, [wanted])[wanted]:
        message = f"{wanted!r} is read as a pattern for full names, and matches none as a whole"
        raise TuneforgeError("unknown-module", message, path=key, fix=f"give a list of names: {key}=[{wanted}]")
    refuse_unmatched(model, [w for w, names in found.items() if not names], key)
    unused = dict.fromkeys(routers(model), "a router or gate of the mixture, which stays frozen")
    unused |= dict.fromkeys(beyond_text(model), "outside of the language model, where text does not pass")
    for typed, names in found.items():
        if all(name in unused for name in names):
            raise TuneforgeError(
                "unknown-module",
                f"{typed!r} matches {names[0]} alone, which is {unused[names[0]]}"
                if len(names) == 1
                else f"{typed!r} matches {names[0]} and the like alone, each {unused[names[0]]}",
                path=key,
                fix=f"name others: {', '.join(sorted(linear_names(model)))}",
            )


def refuse_unmatched(model: nn.Module, missing: list[str], key: str, known: Iterable[str] | None = None) -> None:
    """The error for names that match no module of the model, if there are any.

    Raises:
        TuneforgeError: with the near names, or all that are known.
    """
    if missing:
        raise TuneforgeError(
            "unknown-module",
            f"{', '.join(map(repr, missing))} match{'es' if len(missing) == 1 else ''} no module of this model",
            path=key,
            fix=_known(model, missing[0], known),
        )


def _known(model: nn.Module, missing: str, known: Iterable[str] | None = None) -> str:
    names = sorted(linear_names(model) if known is None else known)
    if missing and near(missing, names):
        return did_you_mean(missing, names)
    return f"{'linear ' if known is None else ''}modules: {', '.join(names)}"


def check_modules_to_save(model: PreTrainedModel, wanted: list[str] | None) -> list[str] | None:
    """The modules to train in full, by names that PEFT reads as they were meant.

    PEFT ignores a name that matches nothing, and takes `norm` for `input_layernorm` too: it compares ends of names
    without regard to the dots. Where that would take others, full names are given.

    Raises:
        TuneforgeError: a name matches no module with weights.
    """
    if not wanted:
        return None
    key = "method.modules_to_save"
    unused = {*beyond_text(model)}
    filled = {n for n, m in model.named_modules() if n and n not in unused and any(True for _ in m.parameters())}
    found = {w: [n for n in names if n in filled] for w, names in matching(model, list(wanted)).items()}
    known = {part for name in filled if not (part := name.rpartition(".")[2]).isdigit()}
    refuse_unmatched(model, [w for w, names in found.items() if not names], key, known)
    named: list[str] = []
    for typed, names in found.items():
        loose = [n for n, _ in model.named_modules() if n.endswith(typed)]
        named += [typed] if set(loose) == set(names) else names
    return named


def check_patterns(key: str, patterns: Iterable[str] | None, adapted: Iterable[str], model: nn.Module) -> None:
    """Refuse patterns for single modules (`rank_pattern`) that match no adapted module, or only after another one has.

    Raises:
        TuneforgeError: one has no effect, or is no regular expression.
    """
    names, every = list(adapted), list(patterns or ())
    path = f"method.{key}"
    for pattern in every:
        bounded.matching(pattern, (), path)  # by itself, so that an error shows what was typed
    matched = {p: bounded.matching(rf"(.*\.)?({p})$", names, path) for p in every}
    missing = [p for p, found in matched.items() if not found]
    if missing:
        known = shortest_ends(names, (n for n, _ in model.named_modules()))
        raise TuneforgeError(
            "unknown-module",
            f"{', '.join(map(repr, missing))} match{'es' if len(missing) == 1 else ''} no module that has an adapter",
            path=path,
            fix=_known(model, missing[0], known),
        )
    for number, pattern in enumerate(every):
        before = [p for p in every[:number] if set(matched[pattern]) & set(matched[p])]
        if before and all(any(n in matched[p] for p in before) for n in matched[pattern]):
            raise TuneforgeError(
                "unknown-module",
                f"{pattern!r} has no effect: {before[0]!r} stands before it and matches the same modules",
                path=path,
                fix=f"put {pattern!r} first, or drop one of the two",
            )
