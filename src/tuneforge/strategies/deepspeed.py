"""DeepSpeed's ZeRO (arXiv 1910.02054): optimizer states, gradients and weights split over the devices, by stage."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim import Optimizer

from tuneforge.compat import import_deepspeed
from tuneforge.errors import TuneforgeError
from tuneforge.machine import Machine
from tuneforge.rules.strategies import ZERO_PRECISIONS, zero_precision
from tuneforge.sharding import put_in_place
from tuneforge.strategies.ddp import backend_of


def deepspeed(
    machine: Machine,
    /,
    *,
    stage: Literal[1, 2, 3] = 2,
    offload: Literal["none", "cpu"] = "none",
    process_group_backend: Literal["auto", "nccl", "gloo"] = "auto",
) -> "Zero":
    """ZeRO; with `offload=cpu`, optimizer states (and weights, in stage 3) wait in host memory, where the step is done.

    Raises:
        TuneforgeError: DeepSpeed is not installed, or cannot be imported.
    """
    import_deepspeed(machine.kind)
    kind = WholeZero if stage < 3 else SplitZero
    return kind(machine, backend_of(machine, process_group_backend), stage, offload)


class Zero(DDPStrategy):
    """DeepSpeed's engine under Lightning's loop, with checkpoints that any strategy reads.

    Lightning's DeepSpeedStrategy is not used: it refuses CPUs, casts frozen and trained weights to one dtype, takes all
    hooks off the model for each evaluation, and writes its checkpoints past the CheckpointIO.
    """

    def __init__(self, machine: Machine, backend: str, stage: int, offload: str) -> None:
        super().__init__(process_group_backend=backend)
        self.stage = stage
        self.offload = offload
        self._index = machine.device.index or 0
        self._engine: Any = None
        self._groups: list[list[nn.Parameter]] = []
        """The optimizer's parameters, which DeepSpeed replaces by flat parts of them."""

    # ---- building

    def setup_environment(self) -> None:
        """Connect the processes."""
        import deepspeed

        module: Any = self.lightning_module
        if self.precision_plugin.precision not in ZERO_PRECISIONS:
            raise TuneforgeError.of([zero_precision(module.context.config, str(self.precision_plugin.precision))])
        super().setup_environment()
        deepspeed.init_distributed(self.process_group_backend, verbose=False)

    def setup(self, trainer: pl.Trainer) -> None:
        """An engine around model and optimizer; where nothing is trained, the model alone."""
        assert self.accelerator is not None
        assert self.lightning_module is not None
        self.accelerator.setup(trainer)
        self._end_engine()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
            (optimizer,) = self.optimizers
            self._groups = [list(group["params"]) for group in optimizer.param_groups]
            self._start_engine(optimizer)
            self.optimizers = [self._engine.optimizer]
        else:
            self.setup_evaluation()
        self.setup_precision_plugin()
        self.barrier()

    def setup_evaluation(self) -> None:
        """Make the model ready where nothing is trained."""
        raise NotImplementedError

    def _start_engine(self, optimizer: Optimizer | None) -> None:
        import deepspeed

        self._engine, *_ = deepspeed.initialize(
            args=SimpleNamespace(device_rank=self._index),
            model=self.lightning_module,
            optimizer=optimizer,
            model_parameters=[p for group in self._groups for p in group],
            config=self._config(),
            dist_init_required=False,
        )
        self.model = self._engine

    def _end_engine(self) -> None:
        """Take DeepSpeed's hooks off the model."""
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
        self.model = self.lightning_module

    def _config(self) -> dict[str, Any]:
        """DeepSpeed's configuration; what is not said is its default."""
        assert self.lightning_module is not None
        zero: dict[str, Any] = {"stage": self.stage}
        if self.offload != "none":
            place = {"device": self.offload, "pin_memory": self.root_device.type == "cuda"}
            zero |= {"offload_optimizer": place} | ({"offload_param": place} if self.stage == 3 else {})
        return {
            "train_micro_batch_size_per_gpu": 1,  # for its own log of speed, which is off
            "managed_gradient_accumulation": False,  # `step` is called by Lightning at the end of an optimizer step
            "gradient_clipping": self.lightning_module.trainer.gradient_clip_val or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "torch_autocast": {
                "enabled": self.precision_plugin.precision == "bf16-mixed",
                "dtype": "bfloat16",
                # Of these, gradients would be sent in bf16.
                "lower_precision_safe_modules": [],
            },
        }

    # ---- training

    def norm_of_step(self) -> Tensor:
        """Norm of the last step's gradients over all devices, before they were clipped; shape []."""
        return torch.as_tensor(self._engine.get_global_grad_norm(), device=self.root_device)

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """DeepSpeed's own; Lightning has divided by the number of micro-batches."""
        self._engine.backward(closure_loss, scale_wrt_gas=False)
        return closure_loss

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients are sent when DeepSpeed's stage wants them; in stage 1, in the step."""
        yield

    def optimizer_step(self, optimizer: Optimizer, closure: Callable[[], Any], model: Any = None, **kwargs: Any) -> Any:
        """The last micro-batch of a step, and the step, in which DeepSpeed clips."""
        assert self.lightning_module is not None
        result = closure()
        self.precision_plugin._after_closure(self.lightning_module, optimizer)
        self._engine.step()
        return result

    def teardown(self) -> None:
        """Leave weights where they are: DeepSpeed's flat parts refer to them."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()

    # ---- checkpoints

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        """Optimizer states are put into the engine's."""
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        """`load_checkpoint` does."""
        return False

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The trained weights, whole, on the first process."""
        assert self.lightning_module is not None
        found = {n: self.whole(p) for n, p in self.lightning_module.named_parameters() if p.requires_grad}
        return found if self.is_global_zero else {}

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimizer's state as a single process would have it, on the first process."""
        from deepspeed.utils import safe_get_full_optimizer_state

        numbers, state, base = self._numbers(), dict[int, dict[str, Any]](), self._engine.optimizer.optimizer
        self.link_states()
        for flat, parameters in self.parts():
            for key, value in base.state[flat].items():
                for parameter in parameters:
                    own = safe_get_full_optimizer_state(parameter, key) if is_split(value) else value
                    if self.is_global_zero:
                        state.setdefault(numbers[parameter], {})[key] = on_host(own)
        groups = [
            {**group, "params": [numbers[p] for p in parameters]}
            for group, parameters in zip(base.param_groups, self._groups, strict=True)
        ]
        return {"state": dict(sorted(state.items())), "param_groups": groups} if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read by every process, which keeps its part of weights and optimizer states."""
        checkpoint: dict[str, Any] = self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)
        assert self.lightning_module is not None
        for name, parameter in self.lightning_module.named_parameters():
            if name in checkpoint["state_dict"]:
                self.fill(parameter, checkpoint["state_dict"][name])
        if self.optimizers and self._engine is not None:
            self._engine.optimizer.refresh_fp32_params()
            self._fill_states(checkpoint["optimizer_states"][0])
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """`load_checkpoint` has done it."""

    def _fill_states(self, saved: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        numbers, base = self._numbers(), self._engine.optimizer.optimizer
        for group, old in zip(base.param_groups, saved["param_groups"], strict=True):
            group.update({k: v for k, v in old.items() if k != "params"})
        for flat, parameters in self.parts():
            # DeepSpeed makes them in the first step; all weights of a part have the same ones.
            state = saved["state"][numbers[parameters[0]]]
            base.state[flat] = {k: torch.zeros_like(flat) if is_split(v) else place(v, flat) for k, v in state.items()}
        self.link_states()
        for flat, parameters in self.parts():
            for key in (k for k, v in base.state[flat].items() if is_split(v)):
                for parameter in parameters:
                    value = saved["state"][numbers[parameter]][key]
                    safe_set_full_optimizer_state(parameter, value.to(flat.device), key)

    def _numbers(self) -> dict[nn.Parameter, int]:
        """Places of the optimizer's parameters, as torch numbers them in its state."""
        return {p: i for i, p in enumerate(p for group in self._groups for p in group)}

    # ---- what hangs on the stage

    def parts(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """This process's flat parts, each with the parameters that it is cut from."""
        raise NotImplementedError

    def link_states(self) -> None:
        """Have DeepSpeed find the optimizer's states for each parameter."""

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """The weight, in host memory. Called by all processes."""
        raise NotImplementedError

    def fill(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Copy a weight, or this process's part of it. Called by all processes."""
        raise NotImplementedError


class WholeZero(Zero):
    """Stages 1 and 2: weights are whole everywhere, optimizer states and (in stage 2) gradients are split."""

    def setup_evaluation(self) -> None:
        """The model, on its device."""
        self.model_to_device()

    def parts(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """One for each group of the optimizer."""
        zero = self._engine.optimizer
        return list(zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True))

    def link_states(self) -> None:
        """DeepSpeed itself does it after the step of the first group, when the others have no states yet (0.19.8)."""
        from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

        for flat, parameters in self.parts():
            lazy_init_hp_params_optimizer_state(parameters, flat, self._engine.optimizer.optimizer.state)

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """A copy, where it is kept."""
        return on_host(parameter) if self.is_global_zero else parameter

    def fill(self, parameter: nn.Parameter, value: Tensor) -> None:
        """All of it."""
        with torch.no_grad():
            parameter.copy_(value)


class SplitZero(Zero):
    """Stage 3: weights are split as well; the forward pass gathers them module by module."""

    def shard(self, model: nn.Module, *, trains_base: bool) -> None:
        """Leave this process its part of each parameter; what is no parameter moves to the device."""
        import deepspeed

        deepspeed.zero.Init(module=model, config_dict_or_path=self._config())
        for module in model.modules():
            for name, buffer in module._buffers.items():
                module._buffers[name] = None if buffer is None else buffer.to(self.root_device)

    def gathered(self, model: nn.Module, *, everything: bool) -> AbstractContextManager[None]:
        """Put whole weights, one after another, in the place of the parts; the parts come back afterwards.

        DeepSpeed's hooks know parts alone, and modules of some adapters run while they are saved.
        """
        self._end_engine()
        return put_in_place(model, self.whole, everything=everything, keeps=self.is_global_zero)

    def setup_evaluation(self) -> None:
        """An engine without an optimizer, whose hooks gather."""
        self._groups = []
        self._start_engine(None)

    def parts(self) -> list[tuple[Tensor, list[nn.Parameter]]]:
        """One for each group of the optimizer, or several where it is large."""
        zero = self._engine.optimizer
        return list(zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True))

    def whole(self, parameter: nn.Parameter) -> Tensor:
        """Gathered; the first process keeps a copy."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return on_host(parameter) if self.is_global_zero else parameter

    def fill(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Gathered, changed and split again."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
            if self.is_global_zero:
                parameter.copy_(value)


def is_split(value: Any) -> bool:
    """Whether a value of an optimizer's state is one number for each weight, and no count of steps."""
    return isinstance(value, Tensor) and value.ndim > 0


def place(value: Any, flat: Tensor) -> Any:
    """A count of steps, where fused optimizers want it."""
    return value.to(flat.device).clone() if isinstance(value, Tensor) else value


def on_host(value: Any) -> Any:
    """A copy in host memory of a tensor; anything else as it is."""
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value
