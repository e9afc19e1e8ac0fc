"""Safety projectors: the patches that the stock projector reads → safety features, seen by the head only.

b images · p patches · v tower width · h hidden width · q features per image · d LLM width
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from safevlm.config import SafetyConfig
from safevlm.model.tokens import TokenBank


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of (b, c, height, width)."""

    def forward(self, grid: Tensor) -> Tensor:
        return super().forward(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Channel gates from the grid's mean (Hu et al. 2018)."""

    def __init__(self, width: int, reduced: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width, reduced, 1)
        self.excite = nn.Conv2d(reduced, width, 1)
        self.act = nn.SiLU()

    def forward(self, grid: Tensor) -> Tensor:
        return grid * self.excite(self.act(self.squeeze(grid.mean((2, 3), keepdim=True)))).sigmoid()


class RegBlock(nn.Module):
    """A RegNet-Y bottleneck with depthwise middle (Radosavovic et al. 2020), stride 1."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inner, outer, 1, bias=False),
            LayerNorm2d(outer),
            nn.SiLU(),
            nn.Conv2d(outer, outer, 3, padding=1, groups=outer, bias=False),
            LayerNorm2d(outer),
            nn.SiLU(),
            SqueezeExcite(outer, max(1, inner // 4)),
            nn.Conv2d(outer, outer, 1, bias=False),
            LayerNorm2d(outer),
        )
        self.shortcut = (
            nn.Identity()
            if inner == outer
            else nn.Sequential(nn.Conv2d(inner, outer, 1, bias=False), LayerNorm2d(outer))
        )
        self.act = nn.SiLU()

    def forward(self, grid: Tensor) -> Tensor:
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
        grid = patches.transpose(1, 2).unflatten(2, (side, side))  # b v side side
        grid = self.after(self.pool(self.before(grid)))
        return self.readout(grid.flatten(2).transpose(1, 2))


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
