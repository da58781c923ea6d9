"""Training on several processes that share their gradients: DistributedDataParallel (DDP) and FSDP.

Both average the gradients of the processes, and both act on a module's `forward`. The loss therefore belongs inside
it: `model(images, targets={...})`. There `total` sums over the batches of all processes, so each process has the loss
of the whole batch. The averaged gradients then equal the gradients of one process that has the whole batch.
"""

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn
from torch.nn.modules.module import register_module_module_registration_hook
from torch.nn.parallel import DistributedDataParallel

Group = Any  # torch's ProcessGroup; a build without torch.distributed lacks it

# The processes that train together, set while they all run a forward.
_together: ContextVar[Group | None] = ContextVar("together", default=None)
# Whether they call each batch norm equally often. Images of several sizes are run one by one, so then they do not.
_in_step: ContextVar[bool] = ContextVar("in_step", default=True)

_wrapped: "weakref.WeakKeyDictionary[nn.Module, weakref.ref[DistributedDataParallel]]" = weakref.WeakKeyDictionary()


def _remember(parent: nn.Module, _: str, child: nn.Module | None) -> None:
    if isinstance(parent, DistributedDataParallel) and child is not None:
        for part in child.modules():
            _wrapped[part] = weakref.ref(parent)


register_module_module_registration_hook(_remember)


def refuse_past_ddp(module: nn.Module) -> None:
    """Raise `RuntimeError` if DDP trains `module` and DDP's own forward is not running.

    DDP would silently leave the gradients of each process as they are.
    """
    if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
        return
    reference = _wrapped.get(module)
    wrapper = reference() if reference else None
    if wrapper is None or not wrapper.require_backward_grad_sync or _ddp_in_forward() is not None:
        return
    if getattr(wrapper, "_use_python_reducer", False):  # under torch.compile: it hooks the parameters, not the forward
        return
    raise RuntimeError(
        f"this {type(module).__name__} is trained by DistributedDataParallel (DDP), but was called directly, so the "
        "processes would not share gradients. Call the module that DDP returned, model(images, targets={name: "
        "labels}), or call this one in eval mode or under torch.no_grad()"
    )


def _ddp_in_forward() -> DistributedDataParallel | None:
    """Return the wrapper whose forward is running. torch has no public name for it."""
    return DistributedDataParallel._active_ddp_module


@contextmanager
def together(module: nn.Module, sizes: Sequence[tuple[int, int]]) -> Iterator[None]:
    """Run a forward of `module` on images of these sizes.

    While DDP or FSDP runs it for training, `total` sums over the processes.
    """
    group = _group(module)
    if group is None:
        yield
        return
    mixed = torch.tensor(float(len(sizes) > 1), device=next(module.parameters()).device)
    distributed.all_reduce(mixed, group=group)
    tokens = _together.set(group), _in_step.set(not mixed)
    try:
        yield
    finally:
        _together.reset(tokens[0])
        _in_step.reset(tokens[1])


def _group(module: nn.Module) -> Group | None:
    if torch.compiler.is_compiling() or not (module.training and torch.is_grad_enabled()):
        return None
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    wrapper = _ddp_in_forward()
    group = wrapper.process_group if wrapper is not None else distributed.group.WORLD if _sharded(module) else None
    return group if group is not None and distributed.get_world_size(group) > 1 else None


def _sharded(module: nn.Module) -> bool:
    """Return whether FSDP manages `module`. torch marks such a module by a private name."""
    return bool(getattr(module, "_is_fsdp_managed_module", False))


def as_fsdp_forward(module: nn.Module, method: str) -> None:
    """Let FSDP gather the parameters of `module` for `method`, as it does for `forward`, if it is an FSDP unit."""
    if _sharded(module) and method not in vars(module):
        from torch.distributed.fsdp import register_fsdp_forward_method

        register_fsdp_forward_method(module, method)


def is_together() -> bool:
    """Return whether `total` sums over processes here."""
    return not torch.compiler.is_compiling() and _together.get() is not None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        whole = x.clone()
        distributed.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Total.forward(ctx, grads[0].contiguous(), ctx.group), None


def total(x: Tensor) -> Tensor:
    """Return the sum of `x` over the processes that train together, or `x` itself outside such a forward.

    Every process must call it equally often.
    """
    return cast(Tensor, _Total.apply(x, _together.get())) if is_together() else x


def tie(output: Tensor, module: nn.Module) -> Tensor:
    """Return the output, with gradients of 0 for a module that it does not use.

    DDP waits for the gradient of every parameter.
    """
    if not (is_together() and output.requires_grad):
        return output
    return output + 0 * torch.stack([p.sum() for p in module.parameters() if p.requires_grad]).sum()


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the batches of all processes that train together, on any device."""

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        if not (self.training and is_together() and _in_step.get()):
            return super().forward(x)
        wide = x.float()
        count = total(wide.new_tensor(float(x.numel() // x.shape[1])))
        mean = total(wide.sum(dim=(0, 2, 3))) / count
        centred = wide - mean[:, None, None]
        variance = total(centred.square().sum(dim=(0, 2, 3))) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_(variance.to(self.running_var), share)
