"""Makes the bundled tiny model: `python -m tuneforge.tiny FOLDER` (docs/tiny_model.md).

Tokenizer, architecture and training are all here or in the package's own pretrain recipe; the text is the standard
library's documentation. The same Python release and seed give the same files.
"""

import json
import sys
from pathlib import Path

from tuneforge.data.stdlib import documents

SEED = 17
VOCABULARY = 4096
POSITIONS = 512
SPECIAL = ("<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HELD_OUT = "held_out.jsonl"

RECIPE = [
    "task_recipe=pretrain",
    "data.max_length=512",
    "trainer.max_epochs=6",
    "trainer.precision=bf16-mixed",
    "batch.effective_tokens=4096",
    "optim.lr=3e-3",
    "trainer.val_check_interval=0.1",
    f"seed={SEED}",
]


def make(folder: Path) -> None:
    """Write the tokenizer, train the weights, and leave folder/ as it ships."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_architecture(folder)
    held_out = list(documents(held_out=True))
    with (folder / HELD_OUT).open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in held_out)
    run = Path("outputs") / "make_tiny"
    pretrain(folder, run)
    ship(run, folder)


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer trained on the training side of the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(documents(held_out=False), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=SPECIAL[0], pad_token=SPECIAL[1], extra_special_tokens=list(SPECIAL[2:])
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.model_max_length = POSITIONS
    tokenizer.save_pretrained(folder)


def write_architecture(folder: Path) -> None:
    """Llama with 3.4 M parameters: grouped-query attention, gated MLP, tied embeddings."""
    from transformers import LlamaConfig

    LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=1,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)


def pretrain(folder: Path, run: Path) -> None:
    """The package's own command line: the pretrain recipe from random weights."""
    from tuneforge.cli import run as command

    code = command([*RECIPE, "model=hf", f"model.path={folder}", f"hydra.run.dir={run}"])
    if code:
        raise SystemExit(code)


def ship(run: Path, folder: Path) -> None:
    """Weights in bfloat16 and the card: what the model is and what it scores on the text that ships with it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.bfloat16)
    model.save_pretrained(folder)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    card = {
        "parameters": model.num_parameters(),
        "seed": SEED,
        "recipe": RECIPE,
        "python": record["versions"]["python"],
        "steps": record["settled"]["num_steps"],
        "held_out_loss": held_out_loss(folder),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def held_out_loss(folder: Path) -> float:
    """Mean cross-entropy a token, in nats, on the held-out text, in rows as long as the positions."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total, count = 0.0, 0
    for line in (folder / HELD_OUT).read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"] + tokenizer.eos_token, return_tensors="pt")["input_ids"][0]
        for row in ids.split(POSITIONS):
            if len(row) < 2:
                continue
            with torch.no_grad():
                loss = model(input_ids=row[None], labels=row[None]).loss
            total, count = total + float(loss) * (len(row) - 1), count + len(row) - 1
    return round(total / count, 4)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
