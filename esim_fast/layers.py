"""Layers of PyTorch's, the same but for the time they take on a CPU: embedding, dropout and projection in fp32."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .ops.products import linear


class Embedding(nn.Embedding):
    """``torch.nn.Embedding``; on a CPU its dense gradient is made seven times as fast (csrc/embedding_cpu.cpp)."""

    def forward(self, input: Tensor) -> Tensor:
        plain = self.max_norm is None and not self.scale_grad_by_freq and not self.sparse
        fits = input.dim() == 1 and input.dtype == torch.int64 and self.weight.dtype == torch.float32
        if plain and fits and input.device.type == "cpu" and torch.is_grad_enabled() and self.weight.requires_grad:
            return _Embedding.apply(self.weight, input, self.padding_idx)
        return super().forward(input)


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(weight, tokens, padding_idx):
        return functional.embedding(tokens, weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        weight, tokens, ctx.padding_idx = inputs
        ctx.save_for_backward(tokens)
        ctx.words = len(weight)

    @staticmethod
    def backward(ctx, grad):
        (tokens,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants to differentiate this
            padding_idx = -1 if ctx.padding_idx is None else ctx.padding_idx
            return torch.ops.aten.embedding_dense_backward(grad, tokens, ctx.words, padding_idx, False), None, None
        return torch.ops.esim_fast.embedding_backward(grad, tokens, ctx.words, ctx.padding_idx), None, None


@torch.library.register_fake("esim_fast::embedding_backward")
def _embedding_backward_fake(grad_x, tokens, words, padding_idx):
    return grad_x.new_empty(words, grad_x.shape[1])


class Dropout(nn.Dropout):
    """``torch.nn.Dropout``; on a CPU it draws 16 bits for each element instead of a random float, which is what takes
    the time: probabilities are multiples of 2**-16."""

    def forward(self, input: Tensor) -> Tensor:
        drop = round(self.p * 2**16)
        eager = not torch.compiler.is_compiling()  # a compiler has its own fast way
        if not (self.training and eager and input.device.type == "cpu" and 0 < drop < 2**16) or self.inplace:
            return super().forward(input)
        words = torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: input.numel()].view(input.shape)
        return input * (bits >= drop - 2**15).to(input.dtype).mul_(1 / (1 - self.p))


class Linear(nn.Linear):
    """``torch.nn.Linear``; on a CPU its fp32 products are oneDNN's (ops/products.py)."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias) if input.dim() == 2 else super().forward(input)
