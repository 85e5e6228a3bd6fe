"""What makes the model fast and small on a CPU. Results stay the same to float32 rounding.

* Chunks, in inference ([`worth_chunking`]): the video encoder computes a few megabytes of activations at a time. They
  stay in the processor's cache, and malloc reuses blocks of this size; blocks above 32 MB it requests from the system,
  page by page, for every layer. Switch: `CHUNK_BYTES`, infinite for no chunks.
* Parts of windows ([`worth_splitting`]): where a shifted window joins two ends of the clip, tokens of different ends
  must not see each other. Each part is computed as a window of its own, instead of all scores under a mask of -100: a
  weight that the mask leaves, exp(-100) of its value, is below float32 rounding unless its score exceeds all others by
  more than 80. Switch: `MIN_TOKENS_TO_SPLIT`, infinite for masks.
* Recomputation, in training, on any device ([`recompute_in_backward`]): the output of the MLP's activation function is
  as large as its input and cheap; it is not stored for the backward pass. Switch: `keep_activations` of the MLP.
* MLPs under checkpointing, in training ([`RecomputedMLP`]): only their input is stored, and the backward pass computes
  their first half again, a few rows at a time. Switch: `HIDDEN_BYTES`, 0 for the library's checkpoint of all of it.
* Attention with a learned bias, in training ([`BiasedAttention`]): PyTorch's fused kernel has no gradient for a bias;
  its fallback stores the attention weights of all windows. Switch: [`can_fuse_learned_bias`].
* Products of linear layers ([`fast_linear`], [`apply_linear`]): on x86, PyTorch multiplies float32 matrices with MKL.
  For the few rows of a decoding step MKL is two to three times as fast with the weight on the left, where the time is
  that of reading the weights ([`few_rows_product`]); for a single row, in a batch of one product for each thread
  ([`one_row_product`]). For the other products of up to 16 rows oneDNN is faster. MKL does not use AVX-512 on AMD
  processors; oneDNN does, and is twice as fast there for many rows, with the same weights in the same layout. Switch:
  `FastLinearMode.enabled`.

Shapes: B clips, T frames; N tokens of a window, D channels of an attention head; R rows (all axes but the last),
I input features, O output features of a linear layer.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

# Slices of a window along T, H and W.
Part: TypeAlias = tuple[slice, slice, slice]

# Input bytes of a layer that are computed at once; the hidden layer of an MLP makes 16 MB of them.
CHUNK_BYTES: float = 4 << 20
# Tokens of a window from which on computing its parts apart saves more time than the calls for each part take.
MIN_TOKENS_TO_SPLIT: float = 128
# Bytes of the hidden layer that the backward pass of `RecomputedMLP` computes at once.
HIDDEN_BYTES = 2 << 20
# Attention scores that the backward pass of `BiasedAttention` computes at once: 4 MB.
_CHUNK_SCORES = 1 << 20


def is_eager_tensor(tensor: torch.Tensor) -> bool:
    """Whether a tensor has values that Python may look at: it is not traced, compiled, sharded or quantised."""
    return not torch.compiler.is_compiling() and type(tensor) is torch.Tensor


# --- Chunks -----------------------------------------------------------------------------------------------------------


def worth_chunking(tensor: torch.Tensor) -> bool:
    """Whether to compute a layer in chunks: for large inputs on a CPU, where no gradient keeps all activations."""
    if torch.is_grad_enabled() or tensor.device.type != "cpu" or not is_eager_tensor(tensor):
        return False
    return tensor.nbytes > CHUNK_BYTES


def items_per_chunk(bytes_of_item: int) -> int:
    """How many items, such as windows or frames, a chunk holds; at least one."""
    return max(1, int(CHUNK_BYTES // bytes_of_item))


def map_frame_chunks(
    compute: Callable[[torch.Tensor], torch.Tensor], frames: torch.Tensor, multiple: int = 1
) -> torch.Tensor:
    """`compute(frames)` for frames (B, T, ...), in chunks of a `multiple` of frames where that is worth it."""
    if not worth_chunking(frames):
        return compute(frames)
    num_frames = multiple * items_per_chunk(frames[:, :multiple].nbytes)
    return torch.cat([compute(chunk) for chunk in frames.split(num_frames, dim=1)], dim=1)


def worth_splitting(tensor: torch.Tensor, num_tokens: int) -> bool:
    """
    Whether to compute the parts of a masked window of N (`num_tokens`) tokens apart, so that no masked score is
    computed: a quarter of all scores of the base model.
    """
    return num_tokens >= MIN_TOKENS_TO_SPLIT and tensor.device.type == "cpu" and is_eager_tensor(tensor)


# --- Recomputation ----------------------------------------------------------------------------------------------------


def recompute_in_backward(
    output: torch.Tensor, compute: Callable[[], torch.Tensor]
) -> contextlib.AbstractContextManager[None]:
    """
    A context in which layers read `output` without storing it; the backward pass calls `compute` to get it again.

    `torch.utils.checkpoint` would repeat the linear layer that reads it too, where that is [`OneDNNLinear`]: 8% more
    operations of a training step.
    """

    def pack(tensor: torch.Tensor) -> torch.Tensor | Callable[[], torch.Tensor]:
        # Saved tensors are aliases, known by their address. Sharded and quantised weights may have none.
        is_output = (
            type(tensor) is torch.Tensor
            and tensor.numel() == num_elements
            and tensor.data_ptr() == address
            and tensor.is_contiguous()
        )
        if not is_output:
            return tensor
        shape = tensor.shape
        return lambda: compute().view(shape)

    def unpack(packed: torch.Tensor | Callable[[], torch.Tensor]) -> torch.Tensor:
        return packed if isinstance(packed, torch.Tensor) else packed()

    if not (torch.is_grad_enabled() and output.requires_grad and is_eager_tensor(output)):
        return contextlib.nullcontext()
    address, num_elements = output.data_ptr(), output.numel()
    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


# --- Attention with a learned bias ------------------------------------------------------------------------------------


def bias_of_part(
    bias: torch.Tensor, window: tuple[int, ...], part: Part, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    The bias (heads, n, n) among the n tokens in a part of a window, of (heads, N, N), with an additive mask (n, n); a
    view where possible.
    """
    by_place = bias.unflatten(2, window).unflatten(1, window)  # (heads, T, H, W, T, H, W) of the window
    of_part = by_place[(slice(None), *part, *part)].flatten(4).flatten(1, 3)
    return of_part if mask is None else of_part + mask.to(bias.dtype)


def can_fuse_learned_bias(qkv: torch.Tensor, bias: torch.Tensor, head_dim: int) -> bool:
    """
    Whether [`BiasedAttention`] can train this bias (heads, N, N), and stores less than the attention weights would
    take: queries, keys and values, of D (`head_dim`) channels each.
    """
    return (
        bias.shape[-1] > 3 * head_dim
        and bias.requires_grad
        and qkv.device.type == "cpu"
        and qkv.dtype in (torch.float32, torch.bfloat16)
        and is_eager_tensor(qkv)
    )


class BiasedAttention(torch.autograd.Function):
    """
    softmax(scaling q k' + bias + mask) v with a gradient for the bias, by PyTorch's fused CPU kernel.

    The backward pass computes the attention weights again, some windows at a time.
    """

    @staticmethod
    def forward(
        qkv: torch.Tensor,
        bias: torch.Tensor,
        scaling: float,
        window: tuple[int, ...],
        groups: tuple[tuple[Part, torch.Tensor | None, int], ...],
    ) -> torch.Tensor:
        """
        Args:
            qkv: (R, 3, heads, D) queries, keys and values.
            bias: (heads, N, N), of the same dtype.
            window: size of a window along T, H and W.
            groups: for each run of windows of which the same part attends to itself: the part, its mask (n, n) or
                `None`, and the number of windows.

        Returns:
            Output (R, heads, D).
        """
        # Views of inputs require gradients even here, and a bias that does would not be fused.
        qkv, bias = qkv.detach(), bias.detach()
        output = qkv.new_empty(len(qkv), *qkv.shape[2:])
        for part, mask, rows, shape in _parts_of_rows(groups):
            query, key, value = qkv[rows].unflatten(0, shape).permute(2, 0, 3, 1, 4)  # each (windows, heads, n, D)
            part_bias = bias_of_part(bias, window, part, mask)
            context = F.scaled_dot_product_attention(query, key, value, part_bias[None], scale=scaling)
            output[rows].unflatten(0, shape).copy_(context.transpose(1, 2))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        qkv, bias, ctx.scaling, ctx.window, ctx.groups = inputs
        ctx.save_for_backward(qkv, bias, output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        qkv, bias, output = ctx.saved_tensors
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias, dtype=torch.float32)
        grad_of_windows = grad_bias.unflatten(2, ctx.window).unflatten(1, ctx.window)
        for part, mask, rows, (_, num_tokens) in _parts_of_rows(ctx.groups):
            part_bias = bias_of_part(bias, ctx.window, part, mask)
            grad_part = grad_of_windows[(slice(None), *part, *part)]  # a view
            starts = range(rows.start, rows.stop, num_tokens)
            for start, heads in itertools.product(starts, _slices(len(bias), _CHUNK_SCORES // num_tokens**2)):
                window = slice(start, start + num_tokens)
                query, key, value = qkv[window, :, heads].permute(1, 2, 0, 3)  # each (heads, n, D)
                grad_query, grad_key, grad_value = grad_qkv[window, :, heads].permute(1, 2, 0, 3)
                grad_context = grad_output[window, heads].transpose(0, 1)
                weights = torch.baddbmm(part_bias[heads], query, key.transpose(1, 2), alpha=ctx.scaling).softmax(-1)
                # Gradients of softmax: P * (dP - sum of P * dP over a row), where that sum is dO . O.
                row_sums = (grad_context * output[window, heads].transpose(0, 1)).sum(-1, keepdim=True)
                grad_scores = torch.bmm(grad_context, value.transpose(1, 2)).sub_(row_sums).mul_(weights)
                grad_part[heads] += grad_scores.view(grad_part[heads].shape)
                grad_query.copy_(torch.bmm(grad_scores, key)).mul_(ctx.scaling)
                grad_key.copy_(torch.bmm(grad_scores.transpose(1, 2), query)).mul_(ctx.scaling)
                grad_value.copy_(torch.bmm(weights.transpose(1, 2), grad_context))
        return grad_qkv, grad_bias.to(bias.dtype), None, None, None


def _slices(total: int, size: int) -> Iterator[slice]:
    """Slices of at most `size`, but at least one."""
    for start in range(0, total, max(1, size)):
        yield slice(start, start + max(1, size))


def _parts_of_rows(
    groups: Iterable[tuple[Part, torch.Tensor | None, int]],
) -> Iterator[tuple[Part, torch.Tensor | None, slice, tuple[int, int]]]:
    """For each group: part, mask, slice of rows, and (windows, n) of these rows."""
    start = 0
    for part, mask, count in groups:
        num_tokens = math.prod([side.stop - side.start for side in part])
        yield part, mask, slice(start, start + count * num_tokens), (count, num_tokens)
        start += count * num_tokens


# --- Products of linear layers ----------------------------------------------------------------------------------------

# Row counts for which the weight on the left is the fastest order, and the highest for which oneDNN is faster than
# `F.linear`, both with and without AVX-512.
_FEW_ROWS = range(2, 5)
_MANY_ROWS = 16


def one_row_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., I) of one row x (O, I) -> (..., O), without a gradient, as a batch of one product for each thread."""
    num_outputs, num_inputs = weight.shape
    weights = weight.view(torch.get_num_threads(), -1, num_inputs)
    # A transposed row: with the strides of a column, MKL would be five times slower.
    column = states.flatten(0, -2).t().expand(len(weights), -1, -1)
    product = (
        torch.bmm(weights, column) if bias is None else torch.baddbmm(bias.view(len(weights), -1, 1), weights, column)
    )
    return product.view(*states.shape[:-1], num_outputs)


def _can_divide(weight: torch.Tensor) -> bool:
    """Whether [`one_row_product`] can divide the outputs of a weight evenly among the threads."""
    return weight.shape[0] % torch.get_num_threads() == 0 and weight.is_contiguous()


def few_rows_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., I) x (O, I) -> (..., O) for a few rows, as (O, I) x (I, R), without a gradient."""
    rows = states.flatten(0, -2).t()  # (I, R)
    product = torch.mm(weight, rows) if bias is None else torch.addmm(bias[:, None], weight, rows)
    return product.t().contiguous().view(*states.shape[:-1], -1)


@functools.cache
def has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@functools.cache
def has_faster_onednn() -> bool:
    """Whether oneDNN's float32 products are faster than MKL's on this processor: measured for AMD with AVX-512."""
    if not (has_onednn() and torch.backends.mkl.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return False


def onednn_product(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """(..., I) x (O, I) -> (..., O), without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], "")


class OneDNNLinear(torch.autograd.Function):
    """`F.linear` and its gradients, as products of oneDNN."""

    @staticmethod
    def forward(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """(..., I), (O, I) and (O,) -> (..., O)."""
        return onednn_product(states, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        states, weight, _ = inputs
        ctx.save_for_backward(states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows = grad_output.flatten(0, -2)  # (R, O)
        return (
            onednn_product(grad_output, weight.t()) if needs_states else None,
            onednn_product(rows.t(), states.flatten(0, -2).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


class FastLinearMode(TorchFunctionMode):
    """
    Within this mode `F.linear` of ordinary float32 tensors on a CPU is the fastest product for their size. It is a mode
    and not a layer, because code that quantises or adapts models replaces layers of the type `nn.Linear`.

    Attributes:
        enabled: whether models use the mode; `None` for where PyTorch multiplies with MKL, that is on x86.
    """

    enabled: bool | None = None

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _are_ordinary(*args[:2]):
            return _fastest_linear(*args)
        return func(*args, **(kwargs or {}))


def _fastest_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    needs_gradient = torch.is_grad_enabled() and any(
        each is not None and each.requires_grad for each in (states, weight, bias)
    )
    num_rows = states.numel() // states.shape[-1]
    if num_rows <= _MANY_ROWS and not needs_gradient:
        if num_rows == 1 and _can_divide(weight):
            return one_row_product(states, weight, bias)
        # MKL divides outputs among threads, of which weights with more inputs have too few.
        if num_rows in _FEW_ROWS and weight.shape[0] >= weight.shape[1]:
            return few_rows_product(states, weight, bias)
        if has_onednn():
            return onednn_product(states, weight, bias)
    if has_faster_onednn():
        return OneDNNLinear.apply(states, weight, bias)
    return F.linear(states, weight, bias)


def _are_ordinary(states: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether states and weight are float32 on a CPU, neither traced nor sharded nor quantised, and not to be cast."""
    return (
        type(states) in (torch.Tensor, nn.Parameter)
        and type(weight) in (torch.Tensor, nn.Parameter)
        and type(weight.data) is torch.Tensor
        and states.device.type == weight.device.type == "cpu"
        and states.dtype == weight.dtype == torch.float32
        and states.ndim > 1
        and states.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


def fast_linear(forward: Callable) -> Callable:
    """Decorates a forward pass to run in [`FastLinearMode`], also when checkpointing repeats it, where enabled."""

    @functools.wraps(forward)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _uses_fast_products():
            return forward(*args, **kwargs)
        with FastLinearMode():
            return forward(*args, **kwargs)

    return run


def apply_linear(layer: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """
    `layer(states)` in [`FastLinearMode`] where enabled: for parts of a decoding step, whose many small operations
    would take 5 microseconds each to pass through a mode around all of them.
    """
    if torch.compiler.is_compiling() or not _uses_fast_products():
        return layer(states)
    with FastLinearMode():
        return layer(states)


def _uses_fast_products() -> bool:
    return torch.backends.mkl.is_available() if FastLinearMode.enabled is None else FastLinearMode.enabled


# --- MLPs under checkpointing -----------------------------------------------------------------------------------------


def keep_saved_tensors() -> contextlib.AbstractContextManager[None]:
    """A context in which a checkpoint around it stores what layers save: it does not repeat them."""
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)


def can_recompute_mlp(rows: torch.Tensor, norm: nn.Module, first: nn.Module, second: nn.Module) -> bool:
    """Whether [`RecomputedMLP`] can train these layers: ordinary ones in float32 on a CPU, none of them frozen."""
    if not HIDDEN_BYTES or not is_eager_tensor(rows):
        return False
    return all(
        type(layer) is nn.Linear and layer.weight.ndim == 2 and _are_ordinary(rows, layer.weight)  # 1 where sharded
        for layer in (first, second)
    ) and all(parameter.requires_grad for layer in (norm, first, second) for parameter in layer.parameters())


class RecomputedMLP(torch.autograd.Function):
    """
    An MLP of which only the input is stored. The backward pass computes the rest again, some rows at a time, without
    the second layer's output, which no gradient needs. A checkpoint around the MLP would compute that too, and store
    the hidden layer of all rows at once, four times as large as the input.
    """

    @staticmethod
    def forward(
        rows: torch.Tensor, first: Callable[[torch.Tensor], torch.Tensor], second: nn.Linear, *parameters: torch.Tensor
    ) -> torch.Tensor:
        """
        Args:
            rows: (R, C).
            first: all before the second layer, (R, C) -> (R, I).
            second: (R, I) -> (R, C).
            parameters: of `first`, then weight and bias of `second`; all of them get gradients.
        """
        output = torch.empty_like(rows)
        for part in _row_chunks(rows, second):
            output[part] = second(first(rows[part]))
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        rows, ctx.first, ctx.second, *parameters = inputs
        ctx.save_for_backward(rows, *parameters)

    @staticmethod
    @once_differentiable
    @fast_linear
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, *parameters = ctx.saved_tensors
        grad_rows, totals = torch.empty_like(rows), [torch.zeros_like(each) for each in parameters]
        for part in _row_chunks(rows, ctx.second):
            with torch.enable_grad():
                chunk = rows[part].detach().requires_grad_()
                hidden = ctx.first(chunk)
            grad = grad_output[part]
            grad_hidden = F.linear(grad, ctx.second.weight.t())
            grad_rows[part], *of_first = torch.autograd.grad(hidden, [chunk, *parameters[:-2]], grad_hidden)
            of_second = F.linear(grad.t(), hidden.detach().t()), grad.sum(0)
            for total, each in zip(totals, (*of_first, *of_second), strict=True):
                total += each
        return grad_rows, None, None, *totals


def _row_chunks(rows: torch.Tensor, second: nn.Linear) -> Iterator[slice]:
    return _slices(len(rows), int(HIDDEN_BYTES // (second.in_features * rows.element_size())))


__all__ = [
    "BiasedAttention",
    "Part",
    "FastLinearMode",
    "RecomputedMLP",
    "apply_linear",
    "bias_of_part",
    "can_fuse_learned_bias",
    "can_recompute_mlp",
    "fast_linear",
    "few_rows_product",
    "has_faster_onednn",
    "is_eager_tensor",
    "items_per_chunk",
    "keep_saved_tensors",
    "map_frame_chunks",
    "one_row_product",
    "onednn_product",
    "recompute_in_backward",
    "worth_chunking",
    "worth_splitting",
]
