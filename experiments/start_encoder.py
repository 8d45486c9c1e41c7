"""The encoder that the students of an ablation begin from, copied into the ablation's folder."""

import hashlib
from pathlib import Path

from safetensors.torch import save

from data_cache.errors import UsageError, UserError
from data_cache.system.atomic import atomic_write
from trainer.card import MODEL, read_card
from trainer.checkpoint import read_tensors
from trainer.checkpoint_folders import latest
from trainer.config import TrainConfig
from trainer.students.network import StudentNetwork

ENCODER = "segmenter.network.encoder."
"""What the names of an encoder's tensors begin with in a checkpoint."""


def start_encoder(source: Path, student: TrainConfig, folder: Path) -> Path:
    """Copy an encoder into `folder`, as a file for `encoder_weights`. Returns its path.

    Its name has a hash of its content, so trainings that began from another encoder are not mistaken for these.

    Args:
        source: a run, whose newest checkpoint is used, or the file of an encoder's state dict.
        student: settings of the students, whose encoder it must fit.
        folder: where it is kept.

    Raises:
        UserError: there is no such run or file, it cannot be read, or it does not fit the encoder.

    """
    if source.is_file():
        content, suffix = source.read_bytes(), source.suffix
    else:
        content, suffix = _encoder_of_run(source, student.encoder), ".safetensors"
    file = folder / f"encoder_{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
    if not file.is_file():
        with atomic_write(file) as draft:
            draft.write_bytes(content)
    try:
        StudentNetwork(student.arch, student.encoder, str(file), channels=1)
    except UserError as error:
        file.unlink()
        raise type(error)(str(error).replace(f"--encoder-weights {file}", f"--start {source}")) from None
    return file


def _encoder_of_run(run: Path, encoder: str) -> bytes:
    """The encoder of a run's newest checkpoint as a safetensors file."""
    checkpoint = latest(run)
    card = read_card(checkpoint)
    if (trained := card["config"]["encoder"]) != encoder:
        raise UsageError(f"--start {run}: its encoder is {trained}, and the students' is {encoder}; pass another run")
    tensors = read_tensors(checkpoint, MODEL, card)
    return save({name.removeprefix(ENCODER): value for name, value in tensors.items() if name.startswith(ENCODER)})
