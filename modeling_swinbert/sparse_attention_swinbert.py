"""Attention that executes only what a sparse mask leaves alive, and equals the dense one to float32 rounding.

The softmax gives an entry the weight exp(s - m), with s its score plus its bias and m the largest of its row, which is
at least the score of the diagonal, whose bias is 0. In float32 that is exactly 0 below exp(-104). So an entry is *dead*
where its bias is below -104 by more than any two scores of a row may differ; what they differ in a given clip is
bounded from its queries and keys and compared with that room, and the dense attention serves the clip for which there
is too little. Dead entries have a gradient of exactly 0 too, so training may skip them as well.

Shapes: V clips, N tokens, R rows and S columns of a block, D channels of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

# exp(-104) is 0 in float32, denormal numbers included.
_UNDERFLOW = 104.0
# How far the scores of a row may lie apart before entries come alive that a plan skips. In BERT they differ by tens.
_SCORE_RANGE = 256.0
# From here on the room is taken to be ample, so that a row that sees itself alone needs no query: scores that lie 4096
# apart would need queries and keys of norm 128 in heads of 64 channels, several times those of any BERT.
_AMPLE_ROOM = 4096.0

# Costs on a CPU, measured by `swinbert bench --only masks`, in entries of a block (all heads of one query and one key):
# of a column that is gathered for a block, and of a block. Elsewhere a call costs more than it saves: one block at
# most.
_COST_OF_COLUMN = 10
_COST_OF_BLOCK = 5000
_ROWS_OF_BLOCK = (8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """
    What has to be executed of the attention among N tokens.

    Args:
        size: N.
        blocks: (rows, columns), indices (R,) and (S,) for each block. Rows of no block see themselves alone.
        order: (N,) where each token stands among the rows of all blocks, followed by the others; `None` without blocks.
        alone: the rows of no block.
        room: by how much two scores of a row may differ; infinite where every entry is executed.
    """

    size: int
    blocks: tuple[tuple[torch.Tensor, torch.Tensor], ...] = ()
    order: torch.Tensor | None = None
    alone: torch.Tensor | None = None
    room: float = float("inf")
    is_dense: bool = False

    def __str__(self) -> str:
        return f"{self.path}, {self.executed:.2%} of {self.size} x {self.size} entries executed"

    @property
    def path(self) -> str:
        """`"dense"`, `"identity"` (every token sees itself alone) or `"blocks"`."""
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
        """Whether the scores of a clip have to be compared with the room."""
        return self.room < _AMPLE_ROOM

    @property
    def needs_queries(self) -> bool:
        return bool(self.blocks) or self.compares_scores


@torch.no_grad()
def plan_attention(bias: Callable[[torch.Tensor], torch.Tensor], size: int, device: torch.device) -> AttentionPlan:
    """
    The cheapest way to execute an attention whose bias is known.

    Args:
        bias: from indices of rows (R,) to their bias (R, N), 0 on the diagonal and nowhere above.
        size: N.
    """
    alive = torch.empty(size, size, dtype=torch.bool, device=device)
    nearest = -torch.inf
    for rows in torch.arange(size, device=device).split(256):
        of_rows = bias(rows)
        alive[rows] = ~(of_rows <= -(_UNDERFLOW + _SCORE_RANGE))  # what is not a number stays alive
        nearest = max(nearest, of_rows.masked_fill(alive[rows], -torch.inf).max().item())
    dense = AttentionPlan(size, is_dense=True)

    is_alone = alive.sum(dim=1) == 1
    alone, others = is_alone.nonzero().squeeze(1), (~is_alone).nonzero().squeeze(1)
    cheapest, of_others = _cheapest_blocks(alive[others]) if len(others) else (0, [])
    if cheapest >= size * size:
        return dense
    blocks, start = [], 0
    for count, columns in of_others:
        blocks.append((others[start : start + count], columns))
        start += count
    order = torch.cat([others, alone]).argsort() if blocks else None
    return AttentionPlan(size, tuple(blocks), order, alone, room=-nearest - _UNDERFLOW)


def _cheapest_blocks(alive: torch.Tensor) -> tuple[float, list[tuple[int, torch.Tensor]]]:
    """Cost of rows (R, N), and blocks of neighbours among them: their number and the columns that any of them sees."""
    rows, size = alive.shape
    best, best_columns, best_side = float("inf"), alive[:0], 0
    for side in {*_ROWS_OF_BLOCK, rows} if alive.device.type == "cpu" else {rows}:
        columns = F.pad(alive, (0, 0, 0, -rows % side)).view(-1, side, size).any(dim=1)  # (blocks, N)
        seen = int(columns.sum())
        cost = seen * (side + _COST_OF_COLUMN) + len(columns) * _COST_OF_BLOCK
        if cost < best:
            best, best_columns, best_side = cost, columns, side
    counts = [min(best_side, rows - start) for start in range(0, rows, best_side)]
    return best, [(count, seen.nonzero().squeeze(1)) for count, seen in zip(counts, best_columns, strict=True)]


def score_range(query: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Upper bound (a scalar) of the difference between two scores of a row, from (V, N, heads, D) queries and keys."""
    # q (k - k') is at most |q| (|k - c| + |k' - c|) for any c.
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
        return _attend_to_oneself(value, dropout)
    sizes = [len(rows) * len(columns) for rows, columns in plan.blocks]
    outputs = []
    for (rows, columns), of_block in zip(plan.blocks, bias.split(sizes), strict=True):
        output = F.scaled_dot_product_attention(
            query[:, rows].transpose(1, 2),
            key[:, columns].transpose(1, 2),
            value[:, columns].transpose(1, 2),
            attn_mask=of_block.view(1, 1, len(rows), len(columns)),
            dropout_p=dropout,
            scale=scaling,
        )
        outputs.append(output.transpose(1, 2))
    outputs.append(_attend_to_oneself(value[:, plan.alone], dropout))
    return torch.cat(outputs, dim=1)[:, plan.order]


def _attend_to_oneself(value: torch.Tensor, dropout: float) -> torch.Tensor:
    """A weight of 1, which dropout drops for each head."""
    if not dropout:
        return value
    return value * F.dropout(value.new_ones(*value.shape[:3], 1), p=dropout)


__all__ = ["AttentionPlan", "plan_attention", "planned_attention", "score_range"]
