"""Writes a student with its text features as one ONNX graph, and holds the graph against the student."""

import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.callbacks import Log, ignore
from data_cache.content import indistinguishable_warnings
from data_cache.errors import UsageError, UserError, one_line
from data_cache.paths import cache_folder
from data_cache.system.atomic import atomic_write
from experiments.config import ExportConfig
from experiments.graph import Graph
from experiments.vocabulary import names_of, vocabulary_for_names
from trainer.checkpoint import Checkpoint, load
from trainer.config import GAMMA
from trainer.losses.pixel import pixel_logits
from trainer.segmenter import Vocabulary

NEEDED = ("onnx", "onnxscript", "onnxruntime")
IMAGE, LOGITS, ANY = "image", "logits", "any"
TOLERANCE = 1e-3
"""Greatest difference between a logit of the graph and one of the student, as a share of the greatest logit above 1."""
TRACED = (17, 18)
"""Sides in cells of the image that is traced for any size. A stage with a single window, of 7 or 12 cells in Swin,
would be taken for one that always has one; equal sides for sides that always are."""
SLOW = ("tu-swin",)
"""Encoders that the exporter needs many minutes for if sides are free: each block adds rules about them."""


@dataclass(frozen=True)
class Exported:
    """A graph that was written: its metadata, and how far its logits were from the student's at the most."""

    path: Path
    about: Mapping[str, str]
    difference: float

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"onnx": str(self.path), **self.about, "difference": self.difference}

    def __str__(self) -> str:
        """One line."""
        any_size = self.about["height"] == ANY
        size = "images of any size" if any_size else f"images of {self.about['height']} x {self.about['width']}"
        classes = len(json.loads(self.about["classes"]))
        return f"{self.path}: {classes} classes, {size}, within {self.difference:.1g} of the student's logits"


def export(config: ExportConfig, log: Log = ignore) -> Exported:
    """Write a graph that takes batches of any length and, where the student does, images of any size.

    The graph runs in onnxruntime beside the student before it is kept. `log` gets the reason
    if it is bound to one size although none was given, and names that CLIP cannot distinguish.

    Raises:
        UserError, UsageError: a package is missing, no such checkpoint or classes, a CLIP that cannot encode
            them, a size that the student cannot have, or a student that cannot be exported.

    """
    for package in NEEDED:
        if find_spec(package) is None:
            raise UserError(f"export needs the package {package}: pip install 'clipteacher[onnx]'")
    if config.onnx.is_dir():
        raise UserError(f"--onnx {config.onnx}: is a folder; name a file")
    wanted = None if config.classes is None else names_of(config.classes)
    student = load(config.checkpoint, torch.device("cpu"))
    size = None if config.size in (None, ANY) else _size_of(str(config.size), student.network.multiple)
    vocabulary = vocabulary_for_names(student, wanted, cache_folder(), config.prompts, config.clip, config.clip_weights)
    for warning in indistinguishable_warnings(vocabulary.split.classes, vocabulary.text.numpy(force=True)):
        log(warning)
    work = _Work(config, student, vocabulary)
    if config.size is not None:
        return work.write(size)
    reason = f"another takes the exporter many minutes: --size {ANY}"
    if not student.config.encoder.startswith(SLOW):
        try:
            return work.write(None)
        except UserError as error:
            reason = str(error)
    log(f"the graph is for images of {student.size} x {student.size} pixels only ({reason}); --size names another size")
    return work.write((student.size, student.size))


def _size_of(text: str, multiple: int) -> tuple[int, int]:
    """Height and width from `--size`. Raises UsageError for what is none, or none of this student's."""
    try:
        sides = [int(side) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or any(side < 1 or side % multiple for side in sides):
        raise UsageError(
            f"--size {text}: must be {ANY}, a side in pixels, or height and width with a comma between; sides must be "
            f"multiples of {multiple} for this student"
        )
    return sides[0], sides[-1]


@dataclass(frozen=True)
class _Work:
    """Traces, writes, compares and only then keeps a graph."""

    config: ExportConfig
    student: Checkpoint
    vocabulary: Vocabulary

    def write(self, size: tuple[int, int] | None) -> Exported:
        """A graph for one size (height, width) or for any. Raises UserError if it cannot be had."""
        path, about = self.config.onnx, self._about(size)
        graph = Graph(self.student, self.vocabulary, self.config.gamma or 0.0).eval()
        try:
            with atomic_write(path) as draft, _quiet(), torch.no_grad():
                program = _trace(graph, size)
                program.model.metadata_props.update(about)
                program.model.doc_string = _description(about)
                program.save(draft, external_data=False)
                difference = self._difference(draft, size)
        except (UserError, OSError):
            raise
        except Exception as error:  # the exporter has no class of errors for what it cannot do
            raise UserError(f"this student cannot be exported: {one_line(error)}") from None
        return Exported(path, about, difference)

    def _about(self, size: tuple[int, int] | None) -> dict[str, str]:
        """The metadata of a graph, as docs/export.md lists them."""
        config, network, split = self.config, self.student.network, self.vocabulary.split
        return {
            "format": "clipteacher-graph",
            "version": "1",
            "classes": json.dumps(split.classes, ensure_ascii=False),
            "unseen": json.dumps(split.unseen, ensure_ascii=False),
            "gamma": f"{GAMMA if config.gamma is None else config.gamma:g}",
            "gamma_added": json.dumps(config.gamma is not None),
            "size": str(self.student.size),
            "height": str(size[0]) if size else ANY,
            "width": str(size[1]) if size else ANY,
            "multiple": str(network.multiple),
            "stride": str(network.stride),
            "prompts": config.prompts or self.student.card["prompts"]["name"],
            "clip": self.student.card["clip"]["model"],
            "step": str(self.student.step),
        }

    def _difference(self, file: Path, size: tuple[int, int] | None) -> float:
        """The greatest difference to the student over some batches. Raises UserError if it is too great."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        side, multiple = self.student.size, self.student.network.multiple
        sizes = [size] if size else [(side, side), (3 * multiple, 7 * multiple), (8 * multiple, 2 * multiple)]
        generator, worst = torch.Generator().manual_seed(0), 0.0
        for count, (height, width) in zip((1, 3, 2), sizes * 3, strict=False):
            image = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
            found = torch.from_numpy(session.run([LOGITS], {IMAGE: image.numpy()})[0])
            expected = torch.stack([self._logits(one) for one in image])
            # a wrong graph may have other cells, or numbers that are none: neither compares as small
            same = found.shape == expected.shape
            difference = float((found - expected).abs().max()) if same else math.inf
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise UserError(
                    f"at {height} x {width} pixels the graph's logits are {difference:.1g} off the student's"
                )
            worst = max(worst, difference)
        return worst

    def _logits(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "class y x"]:
        config = self.student.config
        rows = F.normalize(self.vocabulary.text, dim=1)
        logits = pixel_logits(self.student.network(image[None])[0], rows, config.logits, config.tau)
        unlabelled = torch.from_numpy(~self.vocabulary.labelled)[:, None, None]
        return logits + (self.config.gamma or 0.0) * unlabelled


def _trace(graph: Graph, size: tuple[int, int] | None) -> torch.onnx.ONNXProgram:
    multiple, stride = graph.segmenter.multiple, graph.segmenter.stride
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        free |= {2: multiple * torch.export.Dim("rows"), 3: multiple * torch.export.Dim("columns")}
    example = torch.zeros(2, 3, *(size or (multiple * cells for cells in TRACED)), dtype=torch.uint8)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes=(free,),
        input_names=[IMAGE],
        output_names=[LOGITS],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    if size is None:
        output = program.model.graph.outputs[0]
        output.shape = type(output.shape)(
            ["batch", len(graph.text), f"{multiple // stride}*rows", f"{multiple // stride}*columns"]
        )
    return program


def _description(about: Mapping[str, str]) -> str:
    gamma = "has been" if about["gamma_added"] == "true" else "is to be"
    sides = f"{about['height']} x {about['width']}"
    if about["height"] == ANY:
        sides = f"any sides that are multiples of {about['multiple']}, the short one best {about['size']}"
    return (
        f"Zero-shot segmentation. Input {IMAGE}: uint8, batch x 3 x height x width, RGB in 0..255, {sides}. Output "
        f"{LOGITS}: float32, batch x class x height/{about['stride']} x width/{about['stride']}; enlarge them "
        f"bilinearly and take the greatest. {about['gamma']} {gamma} added to the logits of the unseen classes."
    )


@contextmanager
def _quiet() -> Iterator[None]:
    # the exporter warns of what its own packages deprecate, and logs every step
    previous = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
