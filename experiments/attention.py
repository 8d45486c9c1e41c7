"""Where global learning looks: eq. 1 for one view, as numbers."""

import numpy as np
import torch
from jaxtyping import Float, UInt8

from data_cache.views import View, replay_image
from trainer.checkpoint import Checkpoint
from trainer.glm import attention_weights


@torch.inference_mode()
def attention(
    student: Checkpoint,
    cls: Float[np.ndarray, "channel"],
    image: UInt8[np.ndarray, "height width 3"],
    view: View,
) -> Float[np.ndarray, "y x"]:
    """Eq. 1 for one view of an image: how much each of the student's cells counts; the weights' sum is 1."""
    device = student.text.device
    pixels = torch.from_numpy(replay_image(image, view, student.size)).permute(2, 0, 1)[None].to(device)
    features = student.segmenter(pixels).float()
    weights = attention_weights(torch.from_numpy(cls.astype(np.float32))[None].to(device), features)
    return weights.view(features.shape[2:]).cpu().numpy()
