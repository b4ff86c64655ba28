"""A small vision transformer (Dosovitskiy et al. 2021; DeiT-Ti of Touvron et al. 2021)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fairbilevel.models._blocks import run_block


class Heads(nnx.Module):
    """A projection of every token for each head."""

    def __init__(self, width: int, heads: int, size: int, *, rngs: nnx.Rngs):
        start = nnx.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        self.kernel = nnx.Param(start(rngs.params(), (width, heads, size)))
        self.bias = nnx.Param(jnp.zeros((heads, size)))

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens h size"]:
        """As many heads as the kernel has."""
        return jnp.einsum("rtw,whs->rths", x, self.kernel[...]) + self.bias[...]


class Attention(nnx.Module):
    """Multi-head self-attention with a projection of its own for each of q, k and v.

    The number of heads is that of the arrays, so heads can be cut out of them.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        size = max(width // heads, 1)
        self.query = Heads(width, heads, size, rngs=rngs)
        self.key = Heads(width, heads, size, rngs=rngs)
        self.value = Heads(width, heads, size, rngs=rngs)
        self.out = nnx.LinearGeneral((heads, size), width, axis=(-2, -1), rngs=rngs)
        self.scale = size**-0.5

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """Each token's mix of all of them."""
        scores = jnp.einsum("rqhs,rkhs->rhqk", self.query(x) * self.scale, self.key(x))
        mixed = jnp.einsum("rhqk,rkhs->rqhs", jax.nn.softmax(scores), self.value(x))
        return self.out(mixed)


class TransformerBlock(nnx.Module):
    """Attention, then two dense layers, each on normalized tokens and added to the stream."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        norm = partial(nnx.LayerNorm, width, rngs=rngs)
        self.attention_norm, self.attention = norm(), Attention(width, heads, rngs=rngs)
        self.mlp_norm = norm()
        self.hidden = nnx.Linear(width, 4 * width, rngs=rngs)
        self.project = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "rows tokens width"]) -> Float[Array, "rows tokens width"]:
        """What the next block takes."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.project(nnx.gelu(self.hidden(self.mlp_norm(x)), approximate=False))


class ViT(nnx.Module):
    """A vision transformer with a class token; the defaults are DeiT-Ti's.

    At 224 pixels with patches of 16 and 1000 classes it has 5,717,416 parameters, the published
    count. Pixels that fill no whole patch are left out.

    Args:
        shape: height, width and channels of the images.
        classes: outputs.
        patch: pixels a patch is high and wide.
        width: entries of a token.
        depth: blocks.
        heads: attention heads, of ``width // heads`` entries each.
        remat: keep one activation a block for the backward pass and compute the rest again.
        rngs: where the initial weights come from.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        classes: int,
        patch: int,
        width: int = 192,
        depth: int = 12,
        heads: int = 3,
        remat: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        tokens = (shape[0] // patch) * (shape[1] // patch)
        start = nnx.initializers.truncated_normal(0.02)
        self.embedding = nnx.Conv(
            shape[2], width, (patch, patch), patch, padding="VALID", rngs=rngs
        )
        self.token = nnx.Param(start(rngs.params(), (1, 1, width)))
        self.position = nnx.Param(start(rngs.params(), (1, tokens + 1, width)))
        self.blocks = nnx.List([TransformerBlock(width, heads, rngs=rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.classifier = nnx.Linear(width, classes, rngs=rngs)

    def __call__(self, x: Float[Array, "rows height width channels"]) -> Float[Array, "rows c"]:
        """Logits, read from the class token."""
        x = self.embedding(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], 1) + self.position[...]
        for block in self.blocks:
            x = run_block(block, x, self.remat)
        return self.classifier(self.norm(x)[:, 0])
