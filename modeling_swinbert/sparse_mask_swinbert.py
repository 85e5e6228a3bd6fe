"""The learned sparse attention mask among video tokens (SwinBERT, section 3.2).

Shapes: N video tokens; R rows and S columns of a block of the mask.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .configuration_swinbert import SwinBertConfig
from .sparse_attention_swinbert import AttentionPlan, plan_attention

# Added to the score of a masked pair in the released code; in the penalty form, the factor of (1 - M).
MASK_PENALTY = -10000.0
# Initial mean of the mask's logits: M starts near 1, where the caption loss has a gradient in both forms.
INITIAL_MASK_LOGIT = 6.0


@dataclass(frozen=True)
class MaskStatistics:
    """
    How sparse a mask M (N x N, unit diagonal) makes the attention among N video tokens.

    Args:
        size: N.
        below_half: number of off-diagonal entries with M < 0.5.
        alive: number of off-diagonal entries whose attention weight, at equal scores, is not 0 in float32 relative to
            the diagonal's: exp of the mask's bias, which is 0 on the diagonal, does not underflow.
    """

    size: int
    below_half: int
    alive: int

    @property
    def entries(self) -> int:
        """Number of off-diagonal entries."""
        return self.size * (self.size - 1)

    @property
    def share_below_half(self) -> float:
        """Share of the off-diagonal entries, in [0, 1]."""
        return self.below_half / max(1, self.entries)

    @property
    def share_alive(self) -> float:
        """Share of the off-diagonal entries, in [0, 1]."""
        return self.alive / max(1, self.entries)

    def __str__(self) -> str:
        return (
            f"{self.size} x {self.size}, {self.share_below_half:.2%} of the off-diagonal entries below 0.5;"
            f" {self.alive:,} of {self.entries:,} alive in float32"
        )


@dataclass(frozen=True, eq=False)
class _PlannedMask:
    """A plan of the attention under a mask, the bias of the planned entries, and the weights that both derive from."""

    weight: torch.Tensor
    kind: tuple[str, str]
    plan: AttentionPlan
    bias: torch.Tensor


class SparseVideoMask(nn.Module):
    """
    The learned attention mask M among N video tokens: sigmoid of a free matrix, with a diagonal of ones.

    Attributes:
        skips_dead_entries: whether entries of the attention whose weight is 0 in any case are skipped where that is
            cheaper (see [`AttentionPlan`]). `False`, on a mask or on the class, executes every entry.
    """

    skips_dead_entries = True

    def __init__(self, config: SwinBertConfig):
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.num_video_tokens, config.num_video_tokens))
        self._planned: _PlannedMask | None = None

    def soft_values(self) -> torch.Tensor:
        """(N, N) sigmoid of the weights in float32, with a diagonal of zeros."""
        return torch.sigmoid(self.weight.float()).masked_fill(self._diagonal(), 0.0)

    def values(self) -> torch.Tensor:
        """(N, N) M in float32: in [0, 1], or 0 and 1 for a hard mask, with a diagonal of ones."""
        return self._values(self.weight, self._diagonal())

    def _values(self, weight: torch.Tensor, is_diagonal: torch.Tensor) -> torch.Tensor:
        mask = torch.sigmoid(weight.float()).masked_fill(is_diagonal, 1.0)
        return (mask >= 0.5).float() if self.config.sparse_mask == "hard" else mask

    def _diagonal(self) -> torch.Tensor:
        return torch.eye(len(self.weight), dtype=torch.bool, device=self.weight.device)

    def forward(self, dense: bool = False) -> tuple[torch.Tensor, AttentionPlan]:
        """
        The bias and the plan of the attention among the tokens. Ask for them by calling the module: ZeRO-3 and FSDP
        gather its parameters before the call.

        Args:
            dense: whether to execute every entry.

        Returns:
            The bias of the entries that are executed, `(1, 1, N, N)` or in the order of the plan, and the plan.
        """
        # The values of a sharded tensor, of a meta tensor, or in a compiled graph cannot be read.
        is_readable = type(self.weight) is nn.Parameter and not self.weight.is_meta
        if dense or not self.skips_dead_entries or torch.compiler.is_compiling() or not is_readable:
            return self.bias()[None, None], AttentionPlan(len(self.weight), is_dense=True)
        planned = self._plan()
        if torch.is_grad_enabled() and self.weight.requires_grad:
            return self._planned_bias(planned.plan), planned.plan
        return planned.bias, planned.plan

    @torch.no_grad()
    def plan(self) -> AttentionPlan:
        """How the attention among the video tokens is executed; `str()` of it is one line."""
        return self()[1]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _plan(self) -> _PlannedMask:
        """The cached plan, or a new one if a weight differs: comparing all of them costs little beside a layer."""
        kind = (self.config.sparse_mask, self.config.sparse_mask_form)
        planned, weight = self._planned, self.weight.detach()
        if (
            planned is None
            or planned.kind != kind
            or (planned.weight.dtype, planned.weight.device) != (weight.dtype, weight.device)
            or not torch.equal(planned.weight, weight)
        ):
            plan = plan_attention(self._row_bias, len(weight), weight.device)
            planned = _PlannedMask(weight.clone(), kind, plan, self._planned_bias(plan))
            self._planned = planned  # in one assignment, for other threads
        return planned

    def bias(self) -> torch.Tensor:
        """(N, N) float32 to add to attention scores: (1 - M) * -10000 as penalty, log M as gate."""
        return self._bias(self.weight, self._diagonal())

    def _row_bias(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows (R, N) of the bias."""
        columns = torch.arange(len(self.weight), device=rows.device)
        return self._bias(self.weight[rows], rows[:, None] == columns)

    def _planned_bias(self, plan: AttentionPlan) -> torch.Tensor:
        """(1, 1, N, N) for a dense plan, else the entries of all blocks (R, S) one after the other."""
        if plan.is_dense:
            return self.bias()[None, None]
        if not plan.blocks:
            return self.weight[:0].flatten().float()
        blocks = [
            self._bias(self.weight[rows[:, None], columns], rows[:, None] == columns) for rows, columns in plan.blocks
        ]
        return torch.cat([block.flatten() for block in blocks])

    def _bias(self, weight: torch.Tensor, is_diagonal: torch.Tensor) -> torch.Tensor:
        if self.config.sparse_mask_form == "penalty":
            return (1.0 - self._values(weight, is_diagonal)) * MASK_PENALTY
        if self.config.sparse_mask == "hard":
            return self._values(weight, is_diagonal).log()  # 0 or -inf; the diagonal keeps every row alive
        return F.logsigmoid(weight.float()).masked_fill(is_diagonal, 0.0)

    def sparsity_loss(self) -> torch.Tensor:
        """Mean over all N * N entries of the soft mask with a diagonal of zeros (SwinBERT, equation 2)."""
        return self.soft_values().mean()

    def live_entries(self) -> torch.Tensor:
        """(N, N) bool: entries whose attention weight, at equal scores, is not 0 in float32 beside the diagonal's."""
        return self.bias().exp() > 0

    @torch.no_grad()
    def statistics(self) -> MaskStatistics:
        off_diagonal = ~self._diagonal()
        below_half = (self.soft_values()[off_diagonal] < 0.5).sum()
        return MaskStatistics(len(self.weight), int(below_half), int(self.live_entries()[off_diagonal].sum()))


__all__ = ["INITIAL_MASK_LOGIT", "MASK_PENALTY", "MaskStatistics", "SparseVideoMask"]
