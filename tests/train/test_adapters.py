"""Runs that start from adapters, or that teach the model new tokens."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tuneforge import adapters
from tuneforge.methods.lora import Lora
from tuneforge.schema.model import Combination, Model

ROWS = [{"instruction": f"<ask> {i} <reply>", "input": "", "output": f"<reply> the quick {i}"} for i in range(40)]
TOKENS = 'model.add_tokens=["<ask>", "<reply>"]'


@pytest.fixture
def tiny(model_folders, tmp_path):
    """The options of a short run on rows of these tokens."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(r) + "\n" for r in ROWS))

    def options(name="llama"):
        model = ("model=hf", f"model.path={model_folders[name]}") if name in model_folders else (f"model={name}",)
        return (
            *(*model, "data=file", f"data.path={rows}", "samples.num=0"),
            *("trainer.max_steps=3", "batch.effective=8", "optim.lr=1e-2", "data.split.eval_fraction=0.2"),
        )

    return options


def logits(model, tokenizer, text="say <ask> and <reply>"):
    with torch.no_grad():
        return model.eval()(**tokenizer(text, return_tensors="pt")).logits


# ---- new tokens


def with_adapter(folder, tokenizer, seed):
    """The result as a stranger loads it, the new tokens' rows drawn anew where the base has none for them."""
    path = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    torch.manual_seed(seed)
    if len(tokenizer) > base.get_input_embeddings().num_embeddings:
        base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    before = base.get_input_embeddings().weight.detach().clone()
    return before, PeftModel.from_pretrained(base, folder)


# Embeddings tied to the head and full; tied, with rows to spare; apart, with rows to spare.
@pytest.mark.parametrize("name", ["tiny", "gpt2", "llama"])
def test_new_tokens_are_trained_saved_and_come_back(command, tiny, name):
    ran = command(*tiny(name), TOKENS)
    assert ran.code == 0, ran.err
    tokenizer = AutoTokenizer.from_pretrained(ran.folder / "adapter")
    new = tokenizer.convert_tokens_to_ids(["<ask>", "<reply>"])
    assert new == [len(tokenizer) - 2, len(tokenizer) - 1]
    assert "the quick <ask>" in tokenizer.decode(tokenizer("the quick <ask>").input_ids)

    before, model = with_adapter(ran.folder / "adapter", tokenizer, seed=5)
    after = model.get_input_embeddings().weight.detach()
    assert torch.equal(after[: new[0]], before[: new[0]])
    assert not torch.isclose(after[new], before[new]).all(1).any()
    head = model.get_output_embeddings().weight.detach()
    assert torch.equal(head, after) == (name != "llama")
    # Nothing of the rows that this process drew is left.
    _, other = with_adapter(ran.folder / "adapter", tokenizer, seed=6)
    assert torch.equal(logits(model, tokenizer), logits(other, tokenizer))
    saved = load_file(ran.folder / "adapter" / "adapter_model.safetensors")
    assert {v.shape[0] for k, v in saved.items() if "token" in k} == {2}, "the whole embedding was saved"


def test_new_tokens_of_a_full_run_are_in_its_model(command, tiny):
    ran = command(*tiny("tiny"), TOKENS, "method=full")
    assert ran.code == 0, ran.err
    model = AutoModelForCausalLM.from_pretrained(ran.folder / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(ran.folder / "model")
    assert model.get_input_embeddings().num_embeddings == model.config.vocab_size == len(tokenizer)
    assert logits(model, tokenizer).isfinite().all()


def test_an_adapter_with_other_tokens_is_refused_and_the_fix_works(command, refused, tiny):
    first = command(*tiny(), TOKENS)
    onwards = (*tiny(), f"model.adapter={first.folder / 'adapter'}")
    said = refused(*onwards)
    assert "knows 2 tokens that this run does not: '<ask>', '<reply>'" in said
    assert f"add them: '{TOKENS}'" in said
    ran = command(*onwards, TOKENS)
    moments = ran.record["metrics"]["before"], first.record["metrics"]["after"]
    assert moments[0]["eval/loss"] == pytest.approx(moments[1]["eval/loss"], rel=1e-5)


def test_an_adapter_of_another_tokenizer_is_refused(command, refused, tiny, tmp_path):
    first = command(*tiny())
    said = refused("model=tiny", "data=pydoc", f"model.adapter={first.folder / 'adapter'}")
    assert "was trained with another tokenizer" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["model.add_tokens=[the]"], "'the', which the vocabulary has already"),
        (['model.add_tokens=["<a>","<a>"]'], "'<a>', which the vocabulary has already"),
        (["method=ia3", TOKENS], "method=ia3 leaves their embeddings as they are drawn"),
    ],
)
def test_tokens_that_cannot_be_added_are_refused(refused, tiny, options, says):
    assert says in refused(*tiny(), *options)


# ---- several adapters


@pytest.fixture
def two(model_folders, tmp_path):
    """Two adapters of different ranks on one base, and what each adds to the first query projection."""
    folders, updates = [], []
    for rank in (4, 8):
        base = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
        torch.manual_seed(rank)
        model = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["q_proj"]))
        for n, p in model.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p)
        updates.append(query(model).get_delta_weight("default").detach())
        folders.append(str(tmp_path / f"adapter{rank}"))
        model.save_pretrained(folders[-1])
    return folders, updates


def query(model):
    return model.base_model.model.model.layers[0].self_attn.q_proj


def started(model_folders, **options):
    base = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    return adapters.build(Lora(r=4), base, Model(name="hf", path="x", **options))


def test_a_combination_is_the_weighted_sum_of_the_updates(model_folders, two):
    folders, updates = two
    model = started(model_folders, adapter=folders, combination=Combination(weights=[0.7, -0.2]))
    assert torch.allclose(query(model).get_delta_weight("default"), 0.7 * updates[0] - 0.2 * updates[1], atol=1e-5)
    assert query(model).r == {"default": 12}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if "lora_" in n
    }


def test_a_combination_by_singular_values_is_the_best_of_its_rank(model_folders, two):
    folders, updates = two
    model = started(model_folders, adapter=folders, combination=Combination(type="svd"))
    wanted = (updates[0] + updates[1]) / 2
    u, s, v = torch.linalg.svd(wanted)
    best = u[:, :8] @ torch.diag(s[:8]) @ v[:8]
    assert torch.allclose(query(model).get_delta_weight("default"), best, atol=1e-4)


@pytest.mark.parametrize("kind", ["linear", "ties", "dare_linear", "dare_ties"])
def test_combinations_that_want_equal_ranks(model_folders, two, kind):
    folders, updates = two
    # Of one adapter with itself: A and B are scaled by the weight's root, then added (so that 1/4 twice is one) or, by
    # ties, averaged.
    options = {"type": kind, "weights": [1.0, 1.0] if kind.endswith("ties") else [0.25, 0.25]}
    model = started(model_folders, adapter=[folders[0]] * 2, combination=Combination(**options, density=0.99))
    error = query(model).get_delta_weight("default") - updates[0]
    assert error.norm() < (1e-5 if kind == "linear" else 0.3) * updates[0].norm()
    sparse = started(model_folders, adapter=[folders[0]] * 2, combination=Combination(**options, density=0.2))
    zeros = (query(sparse).lora_A["default"].weight == 0).float().mean()
    assert (zeros > 0.5) == (kind != "linear")


def test_a_frozen_adapter_acts_and_stays(command, tiny, model_folders):
    first = command(*tiny())
    frozen = first.folder / "adapter"
    second = command(*tiny(), f"model.frozen_adapters=[{frozen}]", "regularise.kl=0.1")
    assert second.code == 0, second.err
    # A fresh adapter adds nothing yet: the run starts where the frozen one ended.
    assert second.record["metrics"]["before"]["eval/loss"] == pytest.approx(
        first.record["metrics"]["after"]["eval/loss"], rel=1e-5
    )
    assert second.record["metrics"]["after"]["eval/loss"] < second.record["metrics"]["before"]["eval/loss"]
    saved = second.folder / "adapter"
    before, kept, new = (load_file(f / "adapter_model.safetensors") for f in (frozen, saved / "frozen_0", saved))
    assert before.keys() == kept.keys() == new.keys()
    assert all(torch.equal(before[k], kept[k]) for k in before)
    assert not any(torch.equal(before[k], new[k]) for k in before)

    # With plain PEFT, both switched on.
    base = AutoModelForCausalLM.from_pretrained(model_folders["llama"], dtype=torch.float32)
    model = PeftModel.from_pretrained(base, saved)
    model.load_adapter(saved / "frozen_0", "first")
    model.base_model.set_adapter(["default", "first"])
    assert logits(model, AutoTokenizer.from_pretrained(saved)).isfinite().all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["model.adapter=[{0},{1}]", "model.combination.type=ties"], "the adapters have ranks 4, 8"),
        (["model.adapter=[{0},{1}]", "model.combination.weights=[1]"], "has 1 weights for 2 adapters"),
        (["model.adapter=nowhere"], "nowhere holds no adapter that PEFT can read"),
        (["model.frozen_adapters=[nowhere]"], "nowhere holds no adapter that PEFT can read"),
        (["model.frozen_adapters=[{0}]", "method=pissa"], "this method starts by rewriting it"),
        (["model.frozen_adapters=[{0}]", "method=full"], "method=full trains none"),
    ],
)
def test_adapters_that_do_not_go_together_are_refused(refused, tiny, two, options, says):
    assert says in refused(*tiny(), *[o.format(*two[0]) for o in options])


def test_an_adapter_that_is_continued_keeps_its_sizes_and_the_run_says_so(command, tiny, two):
    ran = command(*tiny(), f"model.adapter={two[0][0]}", "trainer.max_steps=1")
    assert ran.code == 0, ran.err
    assert "keeps its own options: r is 4 there and 16 here" in ran.out
