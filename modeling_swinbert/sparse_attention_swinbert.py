"""Attention that executes only what a sparse mask leaves alive, and equals the dense one to float32 rounding.

The softmax gives an entry the weight exp(s - m), with s its score plus its bias and m the largest of its row, which is
at least the score of the diagonal, whose bias is 0. In float32 that is exactly 0 below exp(-104). So an entry is *dead*
where its bias is below -104 by more than any two scores of a row may differ. A plan is made for a margin of scores. The
range of scores in a given clip is bounded from its queries and keys, and a clip that exceeds the margin goes through
the dense attention. Dead entries have a gradient of exactly 0 too, so training may skip them as well.

Shapes: V clips, N video tokens, R rows and S columns of a block, D channels of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# exp(-104) is 0 in float32, denormal numbers included.
_UNDERFLOW = 104.0
# Range of the scores of a row for which plans are made. In BERT it is tens.
_SCORE_RANGE = 256.0
# A margin that no clip exceeds, so that scores need not be compared with it: scores that lie 4096 apart would need
# queries and keys of norm 128 in heads of 64 channels, several times those of any BERT.
_SAFE_MARGIN = 4096.0

# Costs on a CPU, measured by `swinbert bench --only masks`, in entries of a block (all heads of one query and one key):
# of a column that is gathered for a block, and of a block. On other devices a call costs more than it saves, so that
# one block is the most.
_COST_OF_COLUMN = 10
_COST_OF_BLOCK = 5000
_ROWS_OF_BLOCK = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """
    Which entries of the attention among N tokens are executed.

    Args:
        size: N.
        blocks: indices (R,) of rows and (S,) of columns for each block. Rows of no block attend to themselves only.
        self_only: the rows of no block.
        order: (N,) position of each token among the rows of all blocks followed by `self_only`; `None` without blocks.
        score_margin: the plan is exact for clips in which no two scores of a row differ by more.
        is_dense: whether every entry is executed.
    """

    size: int
    blocks: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    self_only: torch.Tensor | None = None
    order: torch.Tensor | None = None
    score_margin: float = float("inf")
    is_dense: bool = False

    def __str__(self) -> str:
        return f"{self.path}, {self.executed:.2%} of {self.size} x {self.size} entries executed"

    @property
    def path(self) -> str:
        """`"dense"`, `"identity"` (every token attends to itself only) or `"blocks"`."""
        return "dense" if self.is_dense else "blocks" if self.blocks else "identity"

    @property
    def executed(self) -> float:
        """Share of the N * N entries that are executed."""
        if self.is_dense:
            return 1.0
        entries = self.size + sum(len(rows) * (len(columns) - 1) for rows, columns in self.blocks)
        return entries / self.size**2

    @property
    def compares_scores(self) -> bool:
        """Whether the range of a clip's scores has to be compared with the margin."""
        return self.score_margin < _SAFE_MARGIN

    @property
    def needs_queries(self) -> bool:
        return self.is_dense or bool(self.blocks) or self.compares_scores


@torch.no_grad()
def plan_attention(bias: Callable[[torch.Tensor], torch.Tensor], size: int, device: torch.device) -> AttentionPlan:
    """
    The cheapest way to execute an attention under a known bias.

    Args:
        bias: from indices of rows (R,) to their bias (R, N), 0 on the diagonal and nowhere above.
        size: N.
    """
    alive = torch.empty(size, size, dtype=torch.bool, device=device)
    highest_dead_bias = -torch.inf
    for rows in torch.arange(size, device=device).split(256):
        row_bias = bias(rows)
        alive[rows] = ~(row_bias <= -(_UNDERFLOW + _SCORE_RANGE))  # NaN counts as alive
        highest_dead_bias = max(highest_dead_bias, row_bias.masked_fill(alive[rows], -torch.inf).max().item())

    sees_itself_only = alive.sum(dim=1) == 1
    self_only, in_blocks = sees_itself_only.nonzero().squeeze(1), (~sees_itself_only).nonzero().squeeze(1)
    cost, columns_of_blocks = _cheapest_blocks(alive[in_blocks]) if len(in_blocks) else (0, [])
    if cost >= size * size:
        return AttentionPlan(size, is_dense=True)
    blocks, start = [], 0
    for count, columns in columns_of_blocks:
        blocks.append((in_blocks[start : start + count], columns))
        start += count
    order = torch.cat([in_blocks, self_only]).argsort() if blocks else None
    return AttentionPlan(size, tuple(blocks), self_only, order, score_margin=-highest_dead_bias - _UNDERFLOW)


def _cheapest_blocks(alive: torch.Tensor) -> tuple[float, list[tuple[int, torch.Tensor]]]:
    """Cost of rows (R, N) in the cheapest split into blocks; number of rows and live columns (S,) of each block."""
    rows, size = alive.shape
    best, best_columns, best_side = float("inf"), alive[:0], 0
    for side in {*_ROWS_OF_BLOCK, rows} if alive.device.type == "cpu" else {rows}:
        columns = F.pad(alive, (0, 0, 0, -rows % side)).view(-1, side, size).any(dim=1)  # (blocks, N)
        num_columns = int(columns.sum())
        cost = num_columns * (side + _COST_OF_COLUMN) + len(columns) * _COST_OF_BLOCK
        if cost < best:
            best, best_columns, best_side = cost, columns, side
    counts = [min(best_side, rows - start) for start in range(0, rows, best_side)]
    return best, [(count, live.nonzero().squeeze(1)) for count, live in zip(counts, best_columns, strict=True)]


def score_range(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Upper bound (a scalar) of the difference between two scores of a row, from (V, N, heads, D) queries and keys."""
    # |q (k - k')| is at most |q| (|k - c| + |k' - c|) for any c.
    spread = (key - key.mean(dim=1, keepdim=True)).norm(dim=-1).amax(dim=1)  # (V, heads)
    return (2 * scaling * query.norm(dim=-1).amax(dim=1) * spread).amax()


def planned_attention(
    plan: AttentionPlan,
    query: torch.Tensor | None,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """
    Attention among N tokens by a plan that is not dense.

    Args:
        query, key, value: (V, N, heads, D); no query where the plan needs none.
        bias: (entries of all blocks,) in the order of the blocks.

    Returns:
        (V, N, heads, D).
    """
    if query is None or not plan.blocks:
        return _attend_to_self(value, dropout)
    sizes = [len(rows) * len(columns) for rows, columns in plan.blocks]
    outputs = []
    for (rows, columns), block_bias in zip(plan.blocks, bias.split(sizes), strict=True):
        output = F.scaled_dot_product_attention(
            query[:, rows].transpose(1, 2),
            key[:, columns].transpose(1, 2),
            value[:, columns].transpose(1, 2),
            attn_mask=block_bias.view(1, 1, len(rows), len(columns)),
            dropout_p=dropout,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2))
    outputs.append(_attend_to_self(value[:, plan.self_only], dropout))
    return torch.cat(outputs, dim=1)[:, plan.order]


def _attend_to_self(value: torch.Tensor, dropout: float) -> torch.Tensor:
    """Attention of tokens to themselves only: a weight of 1, with dropout of the weight for each head."""
    if not dropout:
        return value
    return value * F.dropout(value.new_ones(*value.shape[:3], 1), p=dropout)


__all__ = ["AttentionPlan", "plan_attention", "planned_attention", "score_range"]
