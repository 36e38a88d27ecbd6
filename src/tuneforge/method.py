"""What every method is asked. A plugin's method derives from this class, or from one of `tuneforge.methods`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tuneforge.data.batches import Batch

Footprint = Literal["full", "layers", "lora", "bottleneck", "vectors"]
"""What a method trains, as far as memory goes: `Trainable.kind` of tuneforge.plan.shape says more."""


class Method:
    """A way of changing a model. Each hook does nothing here; a method overrides what it needs.

    The class attributes are facts, which rules and plans read from the source (tuneforge.schema.facts): literals.
    """

    trains_base: ClassVar[bool] = False
    """The result is a whole model (`model/`) rather than an adapter (`adapter/`)."""
    stores_fp32: ClassVar[bool] = False
    """The base is loaded in fp32, because so much of it is trained."""
    exact: ClassVar[bool] = True
    """Equal rows give equal numbers whatever is beside them; not so where activations are quantised together."""
    checkpoints: ClassVar[bool] = True
    """Activations can be recomputed in the backward pass."""
    new_tokens: ClassVar[bool] = False
    """Trains the embeddings of `model.add_tokens` (`tuneforge.vocabulary.added_tokens` has their ids)."""
    packs: ClassVar[bool] = True
    """Documents of a packed row stay apart under it."""
    reads_gradients: ClassVar[bool] = False
    """`on_step_end` reads the gradients of the step."""
    footprint: ClassVar[Footprint] = "full"
    """How memory is estimated; what says nothing counts as training everything."""
    quantises: ClassVar[Literal[0, 4, 8]] = 0
    """Bits in which the base is stored; 0: not quantised."""
    splits: ClassVar[bool] = True
    """It works where each device has a part of every weight."""
    observes: ClassVar[bool] = False
    """It starts from train rows of next tokens, which `observe` is shown."""
    adapts_experts: ClassVar[bool] = False
    """It can adapt the fused experts of a mixture, through an option `target_parameters`."""
    rewriting: ClassVar[tuple[str, ...]] = ()
    """Values of `init_lora_weights` that move part of the base into the adapter."""
    not_on_conv1d: ClassVar[Mapping[str, str]] = {}
    """Value of `init_lora_weights` ("": all of them) -> why it does not work on GPT-2's Conv1D layers."""

    @property
    def virtual_tokens(self) -> int:
        """Tokens that the method puts in front of every row, and that have hidden states of their own."""
        return 0

    @property
    def positions(self) -> int:
        """Positions of each row that the method takes, before those of the row's tokens."""
        return self.virtual_tokens

    @property
    def reads_base(self) -> bool:
        """Whether `apply` looks at the base's weights, and not at their shapes alone."""
        return True

    @property
    def rewrites_base(self) -> bool:
        """Whether the base without the adapter is no longer the model that was loaded."""
        return False

    @property
    def starts_as_base(self) -> bool:
        """Whether the changed model gives the numbers of the loaded one to the bit until it is trained."""
        return False

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """How the base is quantised while it loads; None: not at all."""
        return None

    @property
    def num_observed(self) -> int:
        """Batches of train rows that `observe` is given; 0: it is not called."""
        return 0

    def observe(self, model: PreTrainedModel, batches: Sequence[Batch]) -> None:
        """Called on the loaded base before `apply`, unless `apply` goes on from an adapter; alike on every device.

        A resumed run is given the same ones again: what is trained then comes from its checkpoint, and a base that was
        rewritten is rewritten alike.
        """

    def apply(self, model: PreTrainedModel, adapter: str | None = None) -> Any:
        """The model with the right weights trainable; `adapter` is the folder of one to go on from."""
        raise NotImplementedError

    def check(self, model: PreTrainedModel) -> None:
        """Called before weights load, with the model on torch's meta device: refuse options that do not fit it.

        The model is thrown away afterwards and may be changed. It is not called where a run goes on from an adapter.
        """

    def on_start(self, model: Any, num_steps: int) -> None:
        """Called once on the changed model, when the number of optimizer steps is known."""

    def penalty(self, model: Any) -> Tensor | None:
        """A term to add to the loss of an optimizer step; shape []."""
        return None

    def on_step_end(self, model: Any, step: int) -> None:
        """Called after optimizer step `step` (from 1), while the gradients are still there."""

    def learning_rate_scale(self, name: str) -> float:
        """What the learning rate of the parameter `name` is multiplied by."""
        return 1.0

    def state(self, model: Any) -> dict[str, Any]:
        """What a checkpoint must hold beside weights; plain containers and tensors."""
        return {}

    def load_state(self, model: Any, state: Mapping[str, Any]) -> None:
        """Take back what `state` gave."""

    def save(self, model: Any, folder: Path) -> None:
        """Write what `from_pretrained` reads."""
        model.save_pretrained(folder)
