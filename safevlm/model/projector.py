"""Safety projectors: the patches that the stock projector reads → safety features, seen by the head only.

b images · p patches · v tower width · h hidden width · q features per image · d LLM width
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from safevlm.config import SafetyConfig
from safevlm.model.tokens import TokenBank


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution of a grid with its channels last, which is a product of matrices: (…, c) → (…, out)."""

    def __init__(self, inner: int, outer: int, bias: bool = False) -> None:
        super().__init__(inner, outer, 1, bias=bias)

    def forward(self, grid: Tensor) -> Tensor:
        return functional.linear(grid, self.weight.flatten(1), self.bias)


class Depthwise(nn.Conv2d):
    """A 3 x 3 convolution of each channel by itself: (b, height, width, c) → the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1, groups=width, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class SqueezeExcite(nn.Module):
    """Channel gates from the grid's mean (Hu et al. 2018)."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.squeeze = Pointwise(width, reduced, bias=True)
        self.excite = Pointwise(reduced, width, bias=True)
        self.act = nn.SiLU()

    def forward(self, grid: Tensor) -> Tensor:
        return grid * self.excite(self.act(self.squeeze(grid.mean((1, 2), keepdim=True)))).sigmoid()


class RegBlock(nn.Module):
    """A RegNet-Y bottleneck with depthwise middle (Radosavovic et al. 2020), stride 1.

    Channels stand last, as norms and products want them: with them first, half of its time goes into moving them.
    """

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            Pointwise(inner, outer),
            nn.LayerNorm(outer),
            nn.SiLU(),
            Depthwise(outer),
            nn.LayerNorm(outer),
            nn.SiLU(),
            SqueezeExcite(outer, max(1, inner // 4)),
            Pointwise(outer, outer),
            nn.LayerNorm(outer),
        )
        self.shortcut = nn.Identity() if inner == outer else nn.Sequential(Pointwise(inner, outer), nn.LayerNorm(outer))
        self.act = nn.SiLU()

    def forward(self, grid: Tensor) -> Tensor:
        """(b, height, width, c) → (b, height, width, out)."""
        return self.act(self.body(grid) + self.shortcut(grid))


class CAbstractor(nn.Module):
    """Honeybee's C-Abstractor (Cha et al. 2024), SafeVLM's choice: conv stage, pooling, conv stage, MLP."""

    def __init__(self, vision_width: int, width: int, depth: int, tokens: int, out: int) -> None:
        super().__init__()
        side = round(tokens**0.5)
        self.before = nn.Sequential(*[RegBlock(vision_width if i == 0 else width, width) for i in range(depth)])
        self.pool = nn.AdaptiveAvgPool2d(side)
        self.after = nn.Sequential(*[RegBlock(width, width) for _ in range(depth)])
        self.readout = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """(b, p, v) → (b, q, d); p must be a square grid, so CLS is not among the patches. ValueError: with a mask."""
        if mask is not None:
            raise ValueError("safety.projector: the c_abstractor needs images of one size; take the resampler")
        side = round(patches.shape[1] ** 0.5)
        grid = self.before(patches.unflatten(1, (side, side)))  # b side side h
        pooled = self.pool(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.readout(self.after(pooled).flatten(1, 2))


class ResamplerLayer(nn.Module):
    """Pre-norm cross-attention of the queries on the patches, then an MLP, both residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_queries, self.norm_patches, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, num_heads=max(1, width // 64), batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, queries: Tensor, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        keys, padding = self.norm_patches(patches), None if mask is None else ~mask
        seen = self.attention(self.norm_queries(queries), keys, keys, key_padding_mask=padding, need_weights=False)[0]
        queries = queries + seen
        return queries + self.mlp(self.norm_mlp(queries))


class Resampler(nn.Module):
    """Latent queries that attend to the patches (Jaegle et al. 2021; Alayrac et al. 2022)."""

    def __init__(self, vision_width: int, width: int, depth: int, tokens: int, out: int) -> None:
        super().__init__()
        self.queries = TokenBank(tokens, width)
        self.enter = nn.Linear(vision_width, width)
        self.layers = nn.ModuleList(ResamplerLayer(width) for _ in range(depth))
        self.leave = nn.Linear(width, out)

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """(b, p, v) → (b, q, d). `mask` (b, p), True at patches: of images with fewer of them."""
        queries, patches = self.queries(patches.shape[0]), self.enter(patches)
        for layer in self.layers:
            queries = layer(queries, patches, mask)
        return self.leave(queries)


class Mlp(nn.Sequential):
    """LLaVA's own shape of projector, one feature per patch. `depth` and `tokens` do not apply."""

    def __init__(self, vision_width: int, width: int, depth: int, tokens: int, out: int) -> None:
        super().__init__(nn.Linear(vision_width, width), nn.GELU(), nn.Linear(width, out))

    def forward(self, patches: Tensor, mask: Tensor | None = None) -> Tensor:
        """(b, p, v) → (b, p, d), of padding too."""
        return super().forward(patches)


PROJECTORS: dict[str, Callable[..., nn.Module]] = {"c_abstractor": CAbstractor, "resampler": Resampler, "mlp": Mlp}


def is_per_patch(projector: nn.Module) -> bool:
    """Whether it makes one feature of each patch, so that images of other sizes have other numbers of features."""
    return isinstance(projector, Mlp)


def build(config: SafetyConfig, vision_width: int, out: int) -> nn.Module | None:
    """The projector that the config names; None for `none`."""
    if config.projector == "none":
        return None
    return PROJECTORS[config.projector](
        vision_width, config.projector_width, config.projector_depth, config.projector_tokens, out
    )
