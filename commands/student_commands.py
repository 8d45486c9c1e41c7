"""The commands that apply a trained student: predict on your own images, and export for your own programs."""

from commands.console import bar, echo, echo_failures, echo_warnings, show
from commands.options import Given, Json, options
from experiments.config import ExportConfig, PredictConfig


@options(PredictConfig)
def predict(given: Given, as_json: Json = False) -> None:
    """Segment your own images with any class names: overlays, index maps and areas."""
    config = PredictConfig(**given)
    from experiments.predict import predict as run

    report = run(config, bar("finished images are kept"), echo_warnings)
    show(report.as_json() if as_json else report.lines)
    echo_failures(report.failures)
    report.check()


@options(ExportConfig)
def export(given: Given, as_json: Json = False) -> None:
    """Export a student and its text features as one ONNX graph, and compare its logits with the student's."""
    config = ExportConfig(**given)
    from experiments.export import export as run

    exported = run(config, echo, echo_warnings)
    show(exported.as_json() if as_json else str(exported))
