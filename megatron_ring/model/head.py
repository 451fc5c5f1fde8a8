"""The language head: log-probabilities, entropies and their gradients, without ever holding tokens x vocabulary.

A loss over tokens is a sum of terms that depend on one token's log-probability and entropy. So the gradient of each chunk's
logits is known as soon as the chunk's logits are: both are made, used and dropped chunk by chunk, in three products
(logits, gradient of the hidden states, gradient of the weight), none of them repeated in the backward pass.

Suffixes: t tokens, n the tokens that count in the loss, h hidden, v this rank's part of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear

from megatron_ring.config.declarations import CHUNK_LOGITS, chunk_tokens
from megatron_ring.model.logprobs import IMPOSSIBLE, logits_gradient, token_statistics
from megatron_ring.parallel import collectives

# (log-probabilities fp32 [c], entropies fp32 [c], which of the n tokens they are) -> a scalar, differentiable in both
TokenLoss = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]

CPU_CHUNK_LOGITS, CPU_CHUNK_TOKENS = 1 << 17, 256  # whichever is more: small enough for a core's cache


class VocabularyHead(ColumnParallelLinear):
    """The output projection of a RingModel: weight [vocab/TP, hidden].

    `real_columns`: classes on this rank that stand for a token; the others pad the vocabulary and are impossible.
    """

    real_columns: int
    tensor_rank: int
    chunk_logits: int = CHUNK_LOGITS

    def logits(self, hidden: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Vocab-parallel logits [R, vocab/TP] of the tokens `rows` (int64 [R]; None: all), from the last layer's output
        [T or T/TP, 1, hidden]. Holds them all: for few tokens, or small vocabularies. No gradients."""
        with torch.no_grad():
            hidden_th = self._gather(hidden)
            return self._logits(hidden_th if rows is None else hidden_th[rows])

    def loss(
        self,
        hidden: torch.Tensor,
        rows: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        token_loss: TokenLoss,
    ) -> torch.Tensor:
        """The sum of `token_loss` over chunks of the tokens that count.

        Args:
            hidden: [T or T/TP, 1, hidden], the last layer's output.
            rows: int64 [n], the tokens that count in the loss, ascending, the same on every tensor-parallel rank; may be
                empty.
            targets: int64 [n], their global token ids.
            temperature: softmax temperature, above 0.
            token_loss: called once for each chunk, in order; also where there are no gradients. Log-probabilities are of
                the targets under softmax(logits / temperature), in nats, equal on every tensor-parallel rank.

        Returns:
            fp32 scalar, differentiable in `hidden` and the weight.
        """
        backward = torch.is_grad_enabled() and (hidden.requires_grad or self.weight.requires_grad)
        return _TokenLoss.apply(hidden, self.weight, self, rows, targets, temperature, token_loss, backward)

    def chunk_tokens(self, on_cuda: bool) -> int:
        """How many tokens' logits are made at a time."""
        classes = self.weight.shape[0]
        if on_cuda:
            return chunk_tokens(classes, self.chunk_logits)
        return chunk_tokens(classes, min(self.chunk_logits, max(CPU_CHUNK_TOKENS * classes, CPU_CHUNK_LOGITS)))

    def _gather(self, hidden: torch.Tensor) -> torch.Tensor:
        """[T, hidden] on every tensor-parallel rank."""
        return collectives.gather_tokens_over_tensor(hidden.flatten(0, 1))

    def _logits(self, hidden_nh: torch.Tensor) -> torch.Tensor:
        if self.config.ring_exact:
            from megatron_ring.model.kernels.exact_mm_triton import exact_mm

            logits_nv = exact_mm(hidden_nh, self.weight)
        else:
            logits_nv = hidden_nh @ self.weight.t()
        if self.real_columns < logits_nv.shape[1]:
            logits_nv[:, self.real_columns :] = IMPOSSIBLE
        return logits_nv


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        head: VocabularyHead,
        rows: torch.Tensor,
        targets: torch.Tensor,
        temperature: float,
        token_loss: TokenLoss,
        backward: bool,
    ) -> torch.Tensor:
        hidden_nh = head._gather(hidden)
        tokens = hidden_nh.shape[0]
        every = rows.numel() == tokens
        if not every:
            hidden_nh = hidden_nh.index_select(0, rows)
        gradient_nh = torch.empty_like(hidden_nh) if backward else None
        gradient_vh: torch.Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        size = head.chunk_tokens(hidden.is_cuda)
        first = head.tensor_rank * weight.shape[0]
        for start in range(0, max(1, rows.numel()), size):
            part = slice(start, min(start + size, rows.numel()))
            logits_cv = head._logits(hidden_nh[part])
            statistics = token_statistics(logits_cv, targets[part], first, temperature)
            logprobs, entropies = statistics.logprobs.requires_grad_(backward), statistics.entropies.requires_grad_(backward)
            with torch.set_grad_enabled(backward):
                loss = token_loss(logprobs, entropies, part)
            total += loss.detach()
            if gradient_nh is None or part.stop == part.start:
                continue
            by_logprob, by_entropy = torch.autograd.grad(loss, (logprobs, entropies), allow_unused=True)
            gradient_cv = logits_gradient(logits_cv, statistics, by_logprob, by_entropy).to(weight.dtype)
            torch.mm(gradient_cv, weight, out=gradient_nh[part])
            gradient_vh = _add_product(gradient_vh, gradient_cv.t(), hidden_nh[part])
            del logits_cv, gradient_cv  # before the next chunk's
        if backward:
            if gradient_vh is None:
                gradient_vh = torch.zeros_like(weight, dtype=torch.float32)
            ctx.save_for_backward(None if every else rows)
            ctx.held = [gradient_vh, gradient_nh]  # let go one by one: they are the step's peak of memory
            ctx.shape, ctx.tokens = hidden.shape, tokens
        return total

    @staticmethod
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        gradient_nh = ctx.held.pop().mul_(scale)
        gradient_vh = ctx.held.pop()
        weight_gradient = _scaled(gradient_vh, scale, gradient_nh.dtype)
        del gradient_vh
        gradient_th = gradient_nh
        if rows is not None:
            gradient_th = gradient_nh.new_zeros(ctx.tokens, gradient_nh.shape[1])
            gradient_th.index_copy_(0, rows, gradient_nh)
        del gradient_nh
        # Each tensor-parallel rank has the part that comes from its classes, and keeps its own tokens: sequence parallelism
        # is on wherever there are several.
        gradient_th = collectives.scatter_sum_of_tokens_over_tensor(gradient_th)
        return gradient_th.view(ctx.shape), weight_gradient, None, None, None, None, None, None


def _add_product(sum_vh: torch.Tensor | None, a_vc: torch.Tensor, b_ch: torch.Tensor) -> torch.Tensor:
    """sum + a @ b in fp32 whatever the factors, over `sum_vh` where there is one."""
    if a_vc.dtype == torch.float32:
        return torch.mm(a_vc, b_ch) if sum_vh is None else sum_vh.addmm_(a_vc, b_ch)
    if not a_vc.is_cuda:
        product = (a_vc @ b_ch).float()
        return product if sum_vh is None else sum_vh.add_(product)
    if sum_vh is None:
        return torch.mm(a_vc, b_ch, out_dtype=torch.float32)
    return torch.addmm(sum_vh, a_vc, b_ch, out_dtype=torch.float32, out=sum_vh)


def _scaled(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if x.is_cuda:
        from megatron_ring.model.kernels import vocabulary_triton

        return vocabulary_triton.scaled(x, scale, dtype)
    return (x * scale).to(dtype)
