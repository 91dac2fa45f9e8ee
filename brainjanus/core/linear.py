"""Linear layers laid out for generation: weights in, products with few rows out, at the speed at which memory is read.

Each step of a generation reads all weights for a handful of rows, so that bytes decide. On a CPU a large model keeps
its weights in float16 and everything else in float32: half the bytes, products summed in float32. In float32, four
rows and more are multiplied with weights in oneDNN's blocked order, up to twice as fast as `F.linear` there. Both are
private operators of torch: where one is missing, plain `F.linear` is used. Layers with the same input are joined.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from brainjanus.core.errors import UserError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")
LARGE = 16_000_000  # parameters; below, the weights stay in the processor's cache and calls decide, not bytes
FEW = 3  # rows up to which F.linear reads float32 weights at full speed
WORTH = 1_000_000  # multiplications from which the blocked order gains more than its calls cost
HINT = 8  # rows that the blocked order is chosen for; any number may come


# B leading dimensions, I inputs, O outputs
class Product:
    """x -> x W' + bias on fixed weights, laid out once."""

    def __init__(self, weight: Float[Tensor, "o i"], bias: Float[Tensor, "o"] | None, precision: str):
        self.weight: Tensor | None = weight
        self.bias = bias
        self.half: Any = None  # torch's own object
        self.blocked: Tensor | None = None
        if weight.device.type != "cpu":
            return
        if precision == "float16" and has_half():
            self.half = torch.ops.quantized.linear_prepack_fp16(weight.float(), bias)
            self.weight = None
        elif weight.dtype == torch.float32 and has_blocked():
            self.blocked = torch.ops.mkldnn._reorder_linear_weight(weight, HINT)

    def __call__(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.half is not None:
            return torch.ops.quantized.linear_dynamic_fp16.default(x, self.half)
        assert self.weight is not None
        rows = x.numel() // x.shape[-1]
        if self.blocked is not None and rows > FEW and rows * self.weight.numel() >= WORTH:
            return torch.ops.mkldnn._linear_pointwise.default(x, self.blocked, self.bias, "none", [], "")
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class PackedLinear(nn.Linear):
    """A linear layer whose weights are fixed until it is trained; its parameters keep their names and values.

    In float16 the values were rounded and have no names any more: the layer can be neither saved nor trained.
    """

    product: Product | None

    def __init__(self, linear: nn.Linear, precision: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.product = Product(self.weight.detach(), None if self.bias is None else self.bias.detach(), precision)
        if self.product.weight is None:
            discard(self)

    def train(self, mode: bool = True) -> "PackedLinear":
        self.product = None if mode else self.product
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.product is None else self.product(x)


class Joined:
    """Linear layers without a bias that have the same input, as one product; dropped before they are trained."""

    def __init__(self, layers: Sequence[nn.Linear], precision: str):
        assert all(layer.bias is None for layer in layers)
        self.sizes = [layer.out_features for layer in layers]
        weights = torch.cat([layer.weight.detach() for layer in layers])
        self.product = Product(weights, None, precision)
        for layer, part in zip(layers, weights.split(self.sizes), strict=True):
            if self.product.weight is None:
                discard(layer)
            else:  # one storage: nothing is kept twice
                layer.weight = nn.Parameter(part, requires_grad=False)

    def __call__(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.product(x)


def discard(layer: nn.Linear) -> None:
    """Give up the weights of a layer whose product has rounded ones."""
    del layer.weight
    layer.register_parameter("weight", None)
    layer.register_state_dict_pre_hook(refuse)


def refuse(*_: object) -> None:
    raise UserError(
        "model: expected its weights as they were saved, got weights rounded for generation. "
        "Load it with precision float32 to train or save it."
    )


def pack(module: nn.Module, precision: str) -> None:
    """Fix the linear layers below a module for generation, in place; one with a `pack` of its own sees to itself."""
    for name, child in list(module.named_children()):
        own = getattr(child, "pack", None)
        if callable(own):
            own(precision)
        elif type(child) is nn.Linear:
            setattr(module, name, PackedLinear(child, precision))
        else:
            pack(child, precision)


def resolve(precision: str, num_parameters: int, device: torch.device) -> str:
    """The precision that "auto" means: bfloat16 on a GPU; on a CPU float16 for large models, float32 for others.

    Raises UserError for one that is not known, or that this device has no fast product for.
    """
    if precision not in PRECISIONS:
        raise UserError(
            f"precision: expected auto, float32, bfloat16 or float16, got '{precision}'. Correct the option."
        )
    if precision != "auto":
        return precision
    if device.type != "cpu":
        return "bfloat16"
    return "float16" if num_parameters >= LARGE and has_half() else "float32"


def has_half() -> bool:
    """Whether torch was built with products of float32 rows and float16 weights for this processor."""
    return (
        "fbgemm" in torch.backends.quantized.supported_engines
        and hasattr(torch.ops.quantized, "linear_prepack_fp16")
        and hasattr(torch.ops.quantized, "linear_dynamic_fp16")
    )


def has_blocked() -> bool:
    """Whether torch has oneDNN's products with blocked weights."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )
