"""What is learned from: DINO, as OceanSAR-1 was, and SimSiam, which is sturdy where little is seen; lightly's parts.

A method is a module that maps views to its loss, so that distributed training wraps one forward a step. Two global
views of a tile go through the backbone as one batch, its local views as another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightly.loss import DINOLoss, NegativeCosineSimilarity
from lightly.models.modules.heads import DINOProjectionHead, SimSiamPredictionHead, SimSiamProjectionHead
from lightly.models.utils import update_momentum
from lightly.utils.scheduler import cosine_schedule
from torch import Tensor, nn

from curation.training.settings import DinoConfig

Backbone = Callable[[], Any]  # makes one with weights of its own; it has `num_features`

HIDDEN, BOTTLENECK = 512, 64  # of DINO's head, as in OceanSAR-1's published code (the paper on DINO: 2048, 256)
FROZEN = 0.01  # share of the steps in which DINO's last layer does not move
PROJECTED, PREDICTED = 512, 128  # of SimSiam's heads


class Method(nn.Module):
    """What all methods have.

    Attributes:
        areas: for each batch of views how many a tile and the least and largest share of the tile that they show.
        encoder: the backbone that is the result.
        rate, decay: of the optimiser, unless the user says otherwise; the rate for a batch of 256.
        seen: float (n, dim), the encoder's vectors of the first view in the last step.
    """

    areas: tuple[tuple[int, tuple[float, float]], ...]
    rate: float
    decay: float
    seen: Tensor

    @property
    def encoder(self) -> Any:
        """The backbone that is the result."""
        raise NotImplementedError

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """The loss.

        Args:
            views: for each of ``areas`` float32 (count * n, bands, side, side): all tiles' first view, then the second.
            weights: float32 (n,): how much each tile counts. They scale the gradient of a tile's outputs, which is the
                gradient of a weighted mean; the loss that is told stays unweighted.
        """
        raise NotImplementedError

    def optimiser(self, rate: float, decay: float) -> torch.optim.Optimizer:
        """Over what is trained."""
        raise NotImplementedError

    def ready(self, progress: float) -> None:
        """Between gradient and step; ``progress`` in [0, 1]."""

    def stepped(self, progress: float) -> None:
        """After the step."""


class SimSiam(Method):
    """SimSiam (Chen and He 2021, "Exploring Simple Siamese Representation Learning")."""

    areas = ((2, (0.2, 0.7)),)
    rate, decay = 0.05, 1e-4

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone()
        self.projection = SimSiamProjectionHead(self.backbone.num_features, PROJECTED, PROJECTED)
        self.prediction = SimSiamPredictionHead(PROJECTED, PREDICTED, PROJECTED)
        self.criterion = NegativeCosineSimilarity()

    @property
    def encoder(self) -> Any:
        """The backbone."""
        return self.backbone

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """The mean negative cosine between a view's prediction and the other's projection."""
        features = self.backbone(views[0])
        self.seen = features.detach().chunk(2)[0]
        projected = self.projection(features)
        predicted = self.prediction(projected)
        with torch.autocast(projected.device.type, enabled=False):
            one, other = _weighed(predicted.float().chunk(2), weights)
            to_one, to_other = projected.detach().float().chunk(2)
            loss: Tensor = (self.criterion(one, to_other) + self.criterion(other, to_one)) / 2
        return loss

    def optimiser(self, rate: float, decay: float) -> torch.optim.Optimizer:
        """SGD with momentum."""
        return torch.optim.SGD(self.parameters(), lr=rate, momentum=0.9, weight_decay=decay)


class Dino(Method):
    """DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers")."""

    rate, decay = 2e-3, 0.04

    def __init__(self, backbone: Backbone, settings: DinoConfig) -> None:
        super().__init__()
        self.areas = ((2, (0.25, 1.0)), (settings.local, (0.05, 0.25)))[: 2 if settings.local else 1]
        self.momentum = settings.momentum
        self.backbone, self.teacher = backbone(), backbone()
        made = [
            DINOProjectionHead(self.backbone.num_features, HIDDEN, BOTTLENECK, settings.outputs, freeze_last_layer=1)
            for _ in range(2)
        ]
        self.head, self.teacher_head = made
        self.teacher.load_state_dict(self.backbone.state_dict())
        self.teacher_head.load_state_dict(self.head.state_dict())
        self.teacher.requires_grad_(False)
        self.teacher_head.requires_grad_(False)
        self.criterion = DINOLoss(settings.outputs, teacher_temp=settings.temperature)

    @property
    def encoder(self) -> Any:
        """The teacher's backbone, which is the better one (Caron et al. 2021, section 5.2)."""
        return self.teacher

    def forward(self, views: list[Tensor], weights: Tensor | None = None) -> Tensor:
        """The mean cross-entropy between the teacher's global and the student's other views."""
        with torch.no_grad():
            features = self.teacher(views[0])
            taught = self.teacher_head(features)
        self.seen = features.chunk(2)[0]
        made = [self.head(self.backbone(x)) for x in views]
        with torch.autocast(taught.device.type, enabled=False):
            learned = [
                one
                for outputs, (count, _) in zip(made, self.areas, strict=True)
                for one in _weighed(outputs.float().chunk(count), weights)
            ]
            loss: Tensor = self.criterion(list(taught.float().chunk(2)), learned)
        return loss

    def optimiser(self, rate: float, decay: float) -> torch.optim.Optimizer:
        """AdamW; biases and normalisations are not decayed."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate)

    def ready(self, progress: float) -> None:
        """Hold the last layer at the beginning, and gradients to a length of 3."""
        self.head.cancel_last_layer_gradients(0 if progress < FROZEN else 1)
        nn.utils.clip_grad_norm_((p for p in self.parameters() if p.grad is not None), 3.0)

    def stepped(self, progress: float) -> None:
        """The teacher follows the student, more slowly towards the end."""
        momentum = cosine_schedule(round(progress * 10_000), 10_001, self.momentum, 1.0)
        update_momentum(self.backbone, self.teacher, momentum)
        update_momentum(self.head, self.teacher_head, momentum)


def _weighed(outputs: tuple[Tensor, ...], weights: Tensor | None) -> tuple[Tensor, ...]:
    """The same outputs, whose gradients will be scaled by tile."""
    if weights is not None:
        for one in outputs:
            one.register_hook(lambda gradient: gradient * weights[:, None])  # type: ignore[no-untyped-call]
    return outputs
