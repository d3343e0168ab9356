"""Any timm model that gives feature maps, as a backbone."""

from __future__ import annotations

from torch import Tensor, nn

from ...utils.errors import UsageError, nearest


class TimmBackbone(nn.Module):
    """The last four feature maps of a timm model, strides 4, 8, 16, 32.

    Args:
        name: a model name of timm, e.g. ``"resnet50"`` or ``"swin_tiny_patch4_window7_224"``.
        pretrained: load timm's weights (needs the hub).

    Raises:
        UsageError: timm has no such model, or it gives no maps at those strides.
    """

    def __init__(self, name: str, *, pretrained: bool = False) -> None:
        super().__init__()
        import timm  # takes seconds: only who needs it waits

        if not timm.is_model(name):
            guess = nearest(name, timm.list_models())
            raise UsageError(
                "timm has no such model.",
                where="MODEL.BACKBONE.NAME",
                value=f"timm:{name}",
                allowed="a name that timm.list_models() lists",
                fix=f"write timm:{guess}" if guess else None,
            )
        any_size = {"strict_img_size": False} if name.startswith("swin") else {}  # Swin alone checks its input's size
        self.body = timm.create_model(name, pretrained=pretrained, features_only=True, **any_size)
        self._channels_last = getattr(self.body, "output_fmt", None) == "NHWC"
        info = self.body.feature_info
        by_stride = dict(zip(info.reduction(), info.channels(), strict=True))
        missing = [stride for stride in (4, 8, 16, 32) if stride not in by_stride]
        if missing:
            raise UsageError(
                f"This timm model gives no feature map at stride {missing}.",
                where="MODEL.BACKBONE.NAME",
                value=f"timm:{name}",
                allowed="a model with maps at strides 4, 8, 16 and 32",
            )
        self._picked = [info.reduction().index(stride) for stride in (4, 8, 16, 32)]
        self.channels = {f"res{i + 2}": by_stride[stride] for i, stride in enumerate((4, 8, 16, 32))}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W) -> {"res2": (B, C, H/4, W/4), ..., "res5": (B, C', H/32, W/32)}."""
        maps = self.body(images)
        if self._channels_last:
            maps = [x.permute(0, 3, 1, 2).contiguous() for x in maps]
        return {f"res{i + 2}": maps[index] for i, index in enumerate(self._picked)}
