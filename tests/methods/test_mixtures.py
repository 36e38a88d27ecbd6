"""Mixtures of experts: attention and experts learn, routers stay, and their balance is part of training alone."""

import copy
import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from helpers import ROUNDING, SHORT, difference, documents, make_method, make_tokenizer
from tuneforge import rules
from tuneforge.compose import compose
from tuneforge.data.batches import Collate, Rows, real_tokens
from tuneforge.data.encode import IGNORE
from tuneforge.objectives.causal_lm import CausalLM, rows_before_head
from tuneforge.objectives.routers import RouterBalance

KINDS = {
    "mixtral": {"num_local_experts": 4, "intermediate_size": 48},
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "intermediate_size": 48, "head_dim": 8},
}
TINY = (*SHORT, "trainer.max_steps=2", "data.max_rows=32", "data.split.max_eval_rows=8", "samples.num=0")
PLAIN = ("method.r=4", "task_recipe.dropout=0")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A random mixture of each kind, two of four experts for each token."""
    made = {}
    for name, own in KINDS.items():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        both = {"vocab_size": 512, "num_experts_per_tok": 2, "max_position_embeddings": 256, "eos_token_id": 2}
        config = AutoConfig.for_model(name, **sizes, **both, bos_token_id=1, **own)
        made[name] = tmp_path_factory.mktemp("mixtures") / name
        model = AutoModelForCausalLM.from_config(config)
        # A fresh head's logits are all near 0, whatever is in front of it, and it is frozen.
        model.lm_head.weight.data *= 20
        model.save_pretrained(made[name])
        make_tokenizer("llama").save_pretrained(made[name])
    return made


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def adapted(folder, *options):
    torch.manual_seed(1)
    built = make_method(compose([*PLAIN, *options]).tree["method"])
    return built, built.apply(load(folder))


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["lora", "rslora", "lora_plus"])
def test_attention_and_experts_learn_and_the_router_stays(folders, kind, method, tmp_path):
    built, model = adapted(folders[kind], f"method={method}")
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    ids = torch.arange(3, 35).repeat(4, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model.train()(input_ids=ids, labels=ids, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n in before if "lora_" in n}
    assert {n.split(".lora_")[0].split(".", 5)[-1] for n in moved} >= {"self_attn.q_proj", "mlp.experts"}
    assert not any("gate.weight" in n for n in moved)

    ours = logits(model, ids)
    built.save(model, tmp_path / "saved")
    torch.manual_seed(99)
    again = PeftModel.from_pretrained(load(folders[kind]), tmp_path / "saved")
    assert difference(logits(again, ids), ours) < ROUNDING
    assert difference(logits(copy.deepcopy(model).merge_and_unload(), ids), ours) < ROUNDING
    with model.disable_adapter():
        assert difference(logits(model, ids), logits(load(folders[kind]), ids)) < ROUNDING


@pytest.mark.parametrize(
    ("options", "experts"),
    [
        ([], {"0", "1"}),
        (["method.target_parameters=[]"], set()),
        (["method.target_modules=[q_proj]"], set()),
        (["method.target_modules=[q_proj]", "method.target_parameters=[experts.down_proj]"], {"0", "1"}),
        (["method.layers_to_transform=[1]"], {"1"}),
    ],
)
def test_which_experts_are_adapted(folders, options, experts):
    _, model = adapted(folders["qwen3_moe"], *options)
    trained = [n for n, p in model.named_parameters() if p.requires_grad]
    assert trained
    assert {n.split(".layers.")[1][0] for n in trained if "experts" in n} == experts


def test_other_methods_leave_experts_and_say_so(folders, capsys):
    _, model = adapted(folders["mixtral"], "method=loha")
    assert not any("experts" in n for n, p in model.named_parameters() if p.requires_grad)
    assert "LoHa leaves the experts of this mixture as they are" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(folders, kind):
    """Rows of one document, padded, so that transformers' attention mask says what our positions say."""
    model = load(folders[kind]).train()
    model.config.router_aux_loss_coef = model.router_aux_loss_coef = 0.3
    rows = Rows(documents(), 64, packing=False)
    batch = Collate(0)([rows[i] for i in range(len(rows))])
    mask, keep = real_tokens(batch), batch["labels"] != IGNORE
    assert not mask.all()
    balance = RouterBalance.of(model, "auto")
    with balance.watching(), rows_before_head(model, keep):
        ours = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(ours.flatten(0, 1), batch["labels"][keep])
    total = loss + balance.loss(batch)
    # transformers shifts labels itself.
    labels = torch.cat([torch.full((len(keep), 1), IGNORE), batch["labels"][:, :-1]], 1)
    theirs = model(input_ids=batch["input_ids"], attention_mask=mask.long(), labels=labels, output_router_logits=True)
    assert total.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
    assert total.item() > loss.item() + 0.1

    gradients = []
    for each in (total, theirs.loss):
        model.zero_grad()
        each.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert difference(*gradients) < ROUNDING


def test_the_balance_of_packed_documents_is_that_of_separate_ones(folders):
    model, made = load(folders["mixtral"]).train(), documents()
    terms = []
    for packing in (True, False):
        rows = Rows(made, 64, packing)
        batch = Collate(0)([rows[i] for i in range(len(rows))])
        assert int(real_tokens(batch).sum()) == sum(len(d.input_ids) for d in made)
        balance = RouterBalance.of(model, 1.0)
        with balance.watching():
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        terms.append(balance.loss(batch).item())
    assert terms[0] == pytest.approx(terms[1], rel=1e-5)


@pytest.mark.parametrize(("accumulate", "world_size"), [(1, 1), (1, 2), (2, 4)])
def test_the_balance_weighs_the_same_on_devices_without_a_row(accumulate, world_size):
    """Of two sequences a step; passes without one add nothing, and Lightning divides by all passes."""
    settled = SimpleNamespace(accumulate=accumulate, world_size=world_size, rows_per_step=2)
    passes, total = accumulate * world_size, torch.zeros(())
    for number in range(passes):
        term = torch.ones(()) if number < settled.rows_per_step else torch.zeros(())
        module = SimpleNamespace(
            context=SimpleNamespace(settled=settled), passes=passes, _kl=0.0, saving_activations=nullcontext,
            _balance=SimpleNamespace(watching=nullcontext, loss=lambda batch, term=term: term),
            _loss_and_logits=lambda batch: (torch.zeros(()), None, None),
            scaled_share=lambda loss, batch: loss, penalised=lambda loss: loss,
        )  # fmt: skip
        total += CausalLM.training_step(module, {}, number) / passes
    assert total.item() == 1.0


def test_a_model_without_routers_has_no_balance(model_folders, folders):
    assert RouterBalance.of(load(model_folders["llama"]), "auto") is None
    assert RouterBalance.of(load(folders["mixtral"]), 0) is None
    assert RouterBalance.of(load(folders["mixtral"]), "auto").coefficient == 0.001


def test_a_run_balances_routers_in_training_and_not_in_evaluation(command, folders):
    model = ("model=hf", f"model.path={folders['mixtral']}", "batch.per_device=1", *TINY, *PLAIN)
    free, held = (command(*model, f"regularise.router_aux_loss_coef={c}") for c in (0, 30))
    assert held.code == free.code == 0, held.err + free.err
    # Nothing has moved yet: equal before training, in what is evaluated and in what is logged.
    before = [r.record["metrics"]["before"]["eval/loss"] for r in (free, held)]
    assert before[0] == before[1]
    assert held.losses[0] == free.losses[0]
    norms = [next(m["train/grad_norm"] for m in r.metrics if "train/grad_norm" in m) for r in (free, held)]
    assert norms[1] != pytest.approx(norms[0], rel=1e-3)
    one, two = (load_file(r.folder / "adapter" / "adapter_model.safetensors") for r in (free, held))
    assert any("experts" in n for n in one)
    assert any(not torch.equal(one[n], two[n]) for n in one)
    config = json.loads((held.folder / "adapter" / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"]) == ["experts.down_proj", "experts.gate_up_proj"]


def test_a_mixture_that_would_stay_unquantised_is_refused(refused, folders, tmp_path):
    model = ("model=hf", f"model.path={folders['mixtral']}", "batch.per_device=1", f"hydra.run.dir={tmp_path / 'run'}")
    said = refused("method=qlora", *TINY, *model, *PLAIN)
    assert "of the layers' weights can be quantised" in said
    assert "experts" in said
    assert "method=lora" in said
    assert not (tmp_path / "run").exists()


EXPERTS = {"model_type": "mixtral", "num_local_experts": 8}
REFUSED = [
    (["task_recipe.dropout=0.1"], "method.lora_dropout"),
    (["method=dora", "task_recipe.dropout=0"], "method.use_dora"),
    (["method=pissa", "task_recipe.dropout=0"], "method.init_lora_weights"),
    (["method=olora", "task_recipe.dropout=0"], "method.init_lora_weights"),
    (["task_recipe.dropout=0.1", "method.target_parameters=[]"], None),
    (["task_recipe.dropout=0.1", "method.target_modules=[q_proj]"], None),
    (["method=loha"], None),
    (["method=eva"], None),
    (["method=corda"], None),
    (["method=full"], None),
    (["task_recipe.dropout=0"], None),
]


@pytest.mark.parametrize(("options", "path"), REFUSED)
def test_what_experts_cannot_have_is_refused_before_weights_load(options, path):
    composed = compose(options)
    found = rules.architecture_problems(composed.config, EXPERTS, composed.tree["method"])
    assert [(p.code, p.path) for p in found] == ([("not-on-experts", path)] if path else [])
    assert all("method.target_parameters=[]" in p.fix for p in found)
    dense = rules.architecture_problems(composed.config, {"model_type": "llama"}, composed.tree["method"])
    assert dense == []


@pytest.mark.parametrize(("options", "path"), [r for r in REFUSED if r[1]])
def test_peft_still_cannot_do_what_is_refused(folders, options, path):
    """A refusal that has become unnecessary fails here."""
    built = make_method(compose([*options, "method.r=4"]).tree["method"])
    with pytest.raises(Exception):  # noqa: B017, PT011  whatever upstream raises
        built.apply(load(folders["mixtral"]))


def test_names_ranks_and_routers_that_are_not_there_are_refused(refused, folders, model_folders, tmp_path):
    def said(folder, *options):
        return refused(
            *("model=hf", f"model.path={folder}", "batch.per_device=1", *TINY, "task_recipe.dropout=0"),
            *(*options, f"hydra.run.dir={tmp_path / 'run'}"),
        )

    assert "there are experts.down_proj, experts.gate_up_proj" in said(
        folders["mixtral"], "method.r=4", "method.target_parameters=[experts.w1]"
    )
    assert "no fused experts here" in said(model_folders["llama"], "method.r=4", "method.target_parameters=[w1]")
    assert "mlp.experts.down_proj is 24 wide" in said(
        folders["qwen3_moe"], "method.r=32", "method.target_modules=[q_proj]", "method.target_parameters=[down_proj]"
    )
    assert "llama has none" in said(model_folders["llama"], "method.r=4", "regularise.router_aux_loss_coef=0.1")
