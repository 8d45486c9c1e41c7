"""Predictions during training: metrics on images that are hidden from the student, and pictures."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL.Image import Image
from torch import Tensor, nn

from data_cache.datasets.base import VOID
from data_cache.errors import UserError
from data_cache.sample import crop_image
from data_cache.splits import Split
from data_cache.views import whole
from trainer.checkpoint import Checkpoint
from trainer.config import TrainConfig
from trainer.data import TrainingData, ViewDataset
from trainer.distributed import ranks
from trainer.metrics import ConfusionMatrix, metrics
from trainer.monitor import VALIDATION
from trainer.predictor import Predictor
from trainer.sampler import Draw
from trainer.segmenter import Vocabulary

PICTURED = 4
"""Images in a picture of predictions."""
Predicted = tuple[
    str, UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "height width"], Int[np.ndarray, "size size"]
]
"""An image's id, the image, its label map without unseen classes, and the prediction for the resized image."""
DrawPredictions = Callable[[Sequence[Predicted], Split, float], Image]
"""Draws predictions at a gamma."""


class Validation:
    """Predicts with a student while it is trained, without changing what it learns.

    The images are resized to the student's input, as in training (view 0): some encoders keep state for each size.

    Args:
        config: how often.
        data: the training images, among them those that are held out.
        network: the student.
        draw: draws pictures; without it, there are none.

    Raises:
        UserError: a held-out image has changed.

    """

    def __init__(
        self, config: TrainConfig, data: TrainingData, network: nn.Module, draw: DrawPredictions | None
    ) -> None:
        self._config, self._data, self._network, self._draw = config, data, network, draw
        self._views = ViewDataset(data.dataset, data.split, data.loaded, data.size, images=data.held_out)
        for index in self._views.images[ranks.rank() :: ranks.world_size()]:
            self._views.check_unchanged(int(index))
        images = data.held_out if len(data.held_out) else np.flatnonzero(data.loaded.ok)
        self._pictured = images[:: -(-len(images) // PICTURED)]

    def metrics(self, step: int, interrupted: Callable[[], bool]) -> dict[str, float]:
        """PAcc and mIoU(S) of the held-out images after every `val_every`-th update and the last; {} after others.

        Neither labels nor names of unseen classes are used: pixels without a seen label are not counted, and the
        prediction is the best seen class. An interrupt ends it early, without a result.
        """
        if not self._is_due(step, self._config.val_every):
            return {}
        split, text = self._data.split, torch.from_numpy(self._data.texts.features)
        confusion, all_seen = ConfusionMatrix(len(split.seen)), np.ones(len(split.seen), bool)
        predictor = self._predictor(Vocabulary(Split(split.seen, ()), text[split.seen_index], all_seen))
        with _evaluating(self._network):
            for item in range(ranks.rank(), len(self._views), ranks.world_size()):
                if interrupted():
                    break
                view = self._views[Draw(item, view=0, position=0)]
                if isinstance(view, UserError):
                    raise view
                pixels, target = view[0].permute(1, 2, 0).numpy(), view[1].numpy()
                confusion.update(np.where(target < 0, VOID, target).astype(np.uint8), predictor(pixels).labelled)
        if ranks.any_rank(interrupted()):
            return {}
        counts = ranks.all_reduce_sum(torch.from_numpy(confusion.counts)).numpy()
        found = metrics(counts, np.array([], int))
        values = {f"{VALIDATION}pAcc": found.pixel_accuracy, f"{VALIDATION}mIoU_S": found.miou_seen}
        return {name: value for name, value in values.items() if not np.isnan(value)}

    def picture(self, step: int) -> Image | None:
        """A picture of predictions for some training images after every `log_images`-th update and the last."""
        if self._draw is None or ranks.rank() or not self._is_due(step, self._config.log_images):
            return None
        data, predictions = self._data, []
        text = torch.from_numpy(data.texts.features)
        predictor = self._predictor(Vocabulary(data.split, text, data.split.is_seen))
        with _evaluating(self._network):
            for index in map(int, self._pictured):
                image, label = data.dataset.load(index)
                hidden = np.full(image.shape[:2], VOID, np.uint8) if label is None else data.split.hide_unseen(label)
                resized = crop_image(image, whole(*image.shape[:2]), data.size)
                predictions.append((data.dataset.ids[index], image, hidden, predictor(resized).at(self._config.gamma)))
        return self._draw(predictions, data.split, self._config.gamma)

    def _is_due(self, step: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == self._config.iterations)

    def _predictor(self, vocabulary: Vocabulary) -> Predictor:
        device = next(self._network.parameters()).device
        text: Float[Tensor, "class channel"] = torch.from_numpy(self._data.texts.features).to(device)
        network: nn.Module = self._network
        return Predictor(
            Checkpoint(self._config, network, self._data.split, text, self._data.size, 0, {}), vocabulary=vocabulary
        )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, without compiling the student again for a single image."""
    network.eval()
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        network.train()
