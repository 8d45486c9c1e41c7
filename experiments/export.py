"""Exports a student with its text features as one ONNX graph and compares the graph with the student."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from data_cache.callbacks import Log, OnWarnings, ignore
from data_cache.errors import UsageError, UserError, one_line
from data_cache.options import number
from data_cache.paths import GRAPH, cache_folder
from data_cache.system.atomic import atomic_write
from data_cache.system.process_state import quiet_logging, quiet_warnings
from experiments.config import ExportConfig
from experiments.graph import Graph
from experiments.vocabulary import parse_names, vocabulary_for_names
from trainer.checkpoint import Checkpoint, load
from trainer.checkpoint_folders import run_of
from trainer.losses.pixel import pixel_logits
from trainer.segmenter import Vocabulary

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
IMAGE, LOGITS, ANY = "image", "logits", "any"
TOLERANCE = 1e-3
"""Largest accepted difference between logits of graph and student, relative to the largest logit if that exceeds 1."""
TRACED = (17, 18)
"""Height and width in cells of the example image for a graph of any size. The exporter specializes on coincidences:
equal sides, or a stage that fits into a single window (7 or 12 cells in Swin)."""
SLOW = ("tu-swin",)
"""Encoders that take many minutes to export for any size, since each block adds shape constraints."""

Size = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True)
class ExportedGraph:
    """A written graph, its metadata, and the largest difference between its logits and the student's."""

    path: Path
    metadata: Mapping[str, str]
    difference: float

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"onnx": str(self.path), **self.metadata, "difference": self.difference}

    def __str__(self) -> str:
        """One line."""
        height, width = self.metadata["height"], self.metadata["width"]
        size = "images of any size" if height == ANY else f"images of {height} x {width}"
        classes = len(json.loads(self.metadata["classes"]))
        return f"{self.path}: {classes} classes, {size}, within {self.difference:.1g} of the student's logits"


def export(config: ExportConfig, log: Log = ignore, on_warnings: OnWarnings = ignore) -> ExportedGraph:
    """Write a graph for batches of any length and, if the student allows it, images of any size.

    The graph is compared with the student in onnxruntime before it is kept. `log` receives the reason if the graph is
    bound to a size that was not requested, and `on_warnings` what is wrong with the class names.

    Raises:
        UserError, UsageError: a package or the checkpoint is missing, the class names are invalid or cannot be
            encoded, or the student does not support the size or cannot be exported.

    """
    for package in PACKAGES:
        if find_spec(package) is None:
            raise UserError(f"export needs the package {package}: pip install 'clipteacher[onnx]'")
    file = config.onnx or run_of(config.checkpoint) / GRAPH
    if file.is_dir():
        raise UserError(f"--onnx {file}: is a folder; name a file")
    names = None if config.classes is None else parse_names(config.classes)
    checkpoint = load(config.checkpoint, torch.device("cpu"))
    size = None if config.size in (None, ANY) else _parse_size(str(config.size), checkpoint.network.multiple)
    vocabulary = vocabulary_for_names(
        checkpoint, names, cache_folder(), config.prompts, config.clip, config.clip_weights
    )
    on_warnings(vocabulary.problems)
    exporter = _Exporter(file, config, checkpoint, vocabulary)
    if config.size is not None:
        return exporter.write(size)
    reason = f"exporting for any size takes many minutes: --size {ANY}"
    if not checkpoint.config.encoder.startswith(SLOW):
        try:
            return exporter.write(None)
        except UserError as error:
            reason = str(error)
    side = checkpoint.size
    log(f"the graph accepts images of {side} x {side} pixels only ({reason}); pass --size for another size")
    return exporter.write((side, side))


def _parse_size(text: str, multiple: int) -> Size:
    """Height and width from `--size`. Raises UsageError for an invalid size, or sides that are no multiples."""
    try:
        sides = [int(number(side, int)) for side in text.split(",")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or any(side < 1 or side % multiple for side in sides):
        raise UsageError(
            f"--size {text}: must be {ANY}, a side in pixels, or HEIGHT,WIDTH; sides must be multiples of {multiple} "
            "for this student"
        )
    return sides[0], sides[-1]


@dataclass(frozen=True)
class _Exporter:
    """Traces and writes a graph, and keeps it only if it equals the student."""

    path: Path
    config: ExportConfig
    checkpoint: Checkpoint
    vocabulary: Vocabulary

    def write(self, size: Size | None) -> ExportedGraph:
        """Write a graph for one size, or for any if None. Raises UserError if that is impossible."""
        metadata = self._metadata(size)
        graph = Graph(self.checkpoint, self.vocabulary, self.config.gamma or 0.0).eval()
        try:
            # the exporter logs every step and passes on deprecation warnings of its own dependencies
            with atomic_write(self.path) as draft, quiet_logging(), quiet_warnings(), torch.no_grad():
                program = _trace(graph, size)
                program.model.metadata_props.update(metadata)
                program.model.doc_string = _description(metadata)
                program.save(draft, external_data=False)
                difference = self._compare(draft, size)
        except (UserError, OSError):
            raise
        except Exception as error:  # the exporter raises exceptions of many unrelated types
            raise UserError(f"this student cannot be exported: {one_line(error)}") from None
        return ExportedGraph(self.path, metadata, difference)

    def _metadata(self, size: Size | None) -> dict[str, str]:
        """The metadata of a graph (docs/export.md)."""
        config, network, split = self.config, self.checkpoint.network, self.vocabulary.split
        return {
            "format": "clipteacher-graph",
            "version": "1",
            "classes": json.dumps(split.classes, ensure_ascii=False),
            "unseen": json.dumps(split.unseen, ensure_ascii=False),
            "gamma": f"{self.checkpoint.gamma(config.gamma):g}",
            "gamma_added": json.dumps(config.gamma is not None),
            "size": str(self.checkpoint.size),
            "height": str(size[0]) if size else ANY,
            "width": str(size[1]) if size else ANY,
            "multiple": str(network.multiple),
            "stride": str(network.stride),
            "prompts": config.prompts or self.checkpoint.card["prompts"]["name"],
            "clip": self.checkpoint.card["clip"]["model"],
            "step": str(self.checkpoint.step),
        }

    def _compare(self, file: Path, size: Size | None) -> float:
        """The largest difference to the student's logits over some batches. Raises UserError above the tolerance."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        side, multiple = self.checkpoint.size, self.checkpoint.network.multiple
        sizes = [size] if size else [(side, side), (3 * multiple, 7 * multiple), (8 * multiple, 2 * multiple)]
        generator, largest = torch.Generator().manual_seed(0), 0.0
        for count, (height, width) in zip((1, 3, 2), sizes * 3, strict=False):
            images = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
            actual = torch.from_numpy(session.run([LOGITS], {IMAGE: images.numpy()})[0])
            expected = torch.stack([self._logits(image) for image in images])
            difference = float((actual - expected).abs().max()) if actual.shape == expected.shape else math.inf
            # `not <=` also catches NaN
            if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
                raise UserError(
                    f"at {height} x {width} pixels the graph's logits are {difference:.1g} off the student's"
                )
            largest = max(largest, difference)
        return largest

    def _logits(self, image: UInt8[Tensor, "3 height width"]) -> Float[Tensor, "class y x"]:
        config = self.checkpoint.config
        text = F.normalize(self.vocabulary.text, dim=1)
        logits = pixel_logits(self.checkpoint.network(image[None])[0], text, config.logits, config.tau)
        unlabelled = torch.from_numpy(~self.vocabulary.labelled)[:, None, None]
        return logits + (self.config.gamma or 0.0) * unlabelled


def _trace(graph: Graph, size: Size | None) -> torch.onnx.ONNXProgram:
    multiple, stride = graph.network.multiple, graph.network.stride
    dynamic: dict[int, Any] = {0: torch.export.Dim("batch")}
    if size is None:
        dynamic |= {2: multiple * torch.export.Dim("rows"), 3: multiple * torch.export.Dim("columns")}
    example = torch.zeros(2, 3, *(size or (multiple * cells for cells in TRACED)), dtype=torch.uint8)
    program = torch.onnx.export(
        graph,
        (example,),
        dynamo=True,
        dynamic_shapes=(dynamic,),
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


def _description(metadata: Mapping[str, str]) -> str:
    gamma = "has been" if metadata["gamma_added"] == "true" else "is to be"
    sides = f"{metadata['height']} x {metadata['width']}"
    if metadata["height"] == ANY:
        sides = f"any sides that are multiples of {metadata['multiple']}, the short one best {metadata['size']}"
    return (
        f"Zero-shot segmentation. Input {IMAGE}: uint8, batch x 3 x height x width, RGB in 0..255, {sides}. Output "
        f"{LOGITS}: float32, batch x class x height/{metadata['stride']} x width/{metadata['stride']}; enlarge them "
        f"bilinearly and take the greatest. {metadata['gamma']} {gamma} added to the logits of the unseen classes."
    )
