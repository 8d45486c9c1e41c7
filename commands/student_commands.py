"""The commands that use a trained student on your own images and in your own programs: predict and export."""

from commands.console import bar, say, say_failures, say_warnings, show
from commands.options import Given, Json, options
from experiments.config import ExportConfig, PredictConfig


@options(PredictConfig)
def predict(given: Given, as_json: Json = False) -> None:
    """Segment your own images with any class names: overlays, index maps and areas."""
    config = PredictConfig(**given)
    from experiments.predict import predict as run

    album = run(config, bar("finished images are kept"))
    show(album.as_json() if as_json else str(album))
    say_warnings(album.warnings)
    say_failures(album.failures)
    album.check()


@options(ExportConfig)
def export(given: Given, as_json: Json = False) -> None:
    """Write a student and its text features as one ONNX graph, which is compared with the student first."""
    config = ExportConfig(**given)
    from experiments.export import export as run

    exported = run(config, say)
    show(exported.as_json() if as_json else str(exported))
