"""Every optimizer of conf/optim: it learns, keeps norms from decaying, and comes back from its state."""

import copy

import pytest
import torch

from tuneforge.compose import compose
from tuneforge.errors import TuneforgeError
from tuneforge.front import front, groups
from tuneforge.model_checks import check_optimizer
from tuneforge.objectives.parameters import parameter_groups
from tuneforge.targets import make

with front() as loader:
    OPTIMIZERS = groups(loader)["optim"]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Embedding(8, 64), torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 8)
    )


def steps(model, optimizer, count: int) -> list[float]:
    torch.manual_seed(1)
    ids = torch.arange(8)
    losses = []
    for _ in range(count):
        loss = torch.nn.functional.cross_entropy(model(ids), (ids + 3) % 8)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def build(name: str, model, lr: float = 1e-2, decay: float = 0.1):
    node = {**compose([f"optim={name}"]).tree["optim"], "lr": lr}
    return make("optim", node, torch.optim.Optimizer, parameter_groups(model, decay, lr))


def test_all_of_them_are_tried():
    assert OPTIMIZERS == ["adafactor", "adamw", "adamw_8bit", "lion", "muon", "paged_adamw_8bit"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_learns(name):
    model = network()
    losses = steps(model, build(name, model), 30)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_goes_on_from_its_state_as_if_nothing_had_happened(name):
    model = network()
    optimizer = build(name, model)
    steps(model, optimizer, 5)
    other = copy.deepcopy(model)
    again = build(name, other)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(model, optimizer, 5) == steps(other, again, 5)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_matrices_decay(name):
    """Without gradients nothing but decay moves a weight."""
    model = network()
    optimizer = build(name, model, lr=0.1, decay=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.allclose(p, before[n], atol=1e-6)}
    assert moved == {"1.weight", "3.weight"}


def test_muon_turns_matrices_and_leaves_the_rest_to_adamw():
    model = network()
    optimizer = build("muon", model)
    kinds = [type(part).__name__ for part in optimizer.parts]
    assert kinds == ["Muon", "AdamW"]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == [5e-3] * len(optimizer.param_groups)
    assert {g["lr"] for part in optimizer.parts for g in part.param_groups} == {5e-3}


def test_a_parameter_may_have_a_rate_of_its_own():
    model = network()
    made = parameter_groups(model, 0.1, 1e-3, lambda name: 16.0 if name == "3.weight" else 1.0)
    rates = {id(p): g["lr"] for g in made for p in g["params"]}
    assert rates[id(model[3].weight)] == pytest.approx(1.6e-2)
    assert rates[id(model[1].weight)] == pytest.approx(1e-3)
    assert sum(len(g["params"]) for g in made) == len(list(model.parameters()))


class _Scales(torch.nn.Module):
    """What adapters train beside matrices: IA3's scales, AdaLoRA's singular values, and LoRA at rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.ia3_l = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.ones(64, 1))})
        self.lora_E = torch.nn.ParameterDict({"default": torch.nn.Parameter(torch.zeros(4, 1))})
        self.time_mix = torch.nn.Parameter(torch.ones(1, 1, 64))
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(64, 1, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(1, 64, bias=False)})


def test_scales_do_not_decay_whatever_their_shape():
    model = _Scales()
    decayed, kept = parameter_groups(model, 0.1, 1e-3)
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name.split(".")[0] for name, p in model.named_parameters()}
    assert [names[id(p)] for p in decayed["params"]] == ["lora_A", "lora_B"]
    assert {names[id(p)] for p in kept["params"]} == {"ia3_l", "lora_E", "time_mix"}
    # Nor are their updates orthogonalised, which would give all numbers of a vector one length together.
    optimizer = build("muon", torch.nn.ModuleList([model, torch.nn.Linear(4, 4, bias=False)]))
    assert [len(group["params"]) for part in optimizer.parts for group in part.param_groups] == [1, 2, 3]
    assert [type(part).__name__ for part in optimizer.parts] == ["Muon", "AdamW"]


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("AdamW", {"betas": [0.9, 1.0]}, "Invalid beta"),
        ("AdamW", {"eps": -1.0}, "Invalid epsilon"),
        ("AdamW", {"fused": True, "foreach": True}, "cannot be `True` together"),
        ("SGD", {"momentum": -1.0}, "Invalid momentum"),
        ("SGD", {"nesterov": True}, "Nesterov"),
    ],
)
def test_what_a_librarys_optimizer_refuses_is_refused_before_weights_load(target, options, says):
    node = {"_target_": f"torch.optim.{target}", "lr": 1e-3, **options}
    with pytest.raises(TuneforgeError, match=says) as caught:
        check_optimizer(node)
    assert caught.value.problems[0].code == "wrong-value"
    check_optimizer({"_target_": f"torch.optim.{target}", "lr": 1e-3})
