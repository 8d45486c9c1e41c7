"""Misspelled names are refused at once with a suggestion, and numbered class lists are refused."""

import numpy as np
import pytest
from command_line import in_a_process
from folders import draw_folder
from refusals import refused
from students import MICRO_SWIN

from commands.choices import CHECKS, choice
from data_cache.datasets.folder import read_classes
from data_cache.errors import UsageError
from data_cache.messages import did_you_mean
from data_cache.options import check_option, choices_of
from experiments.image_choice import choose_images
from experiments.presets import PRESETS, STUDENTS
from experiments.vocabulary import parse_names
from pipeline.config import PrecomputeConfig
from pipeline.teacher.names import check_clip, clip_configs, pretrained_tags
from pipeline.teacher.prompts import prompt_sets
from trainer.config import TrainConfig
from trainer.students import names

MISSPELLED = {
    "precompute": {
        "--dataset=CamVid": "'camvid'",
        "--preset=contxt": "'context'",
        "--prompts=maskclip-85-clean": "'maskclip85'",
        "--dense=Float16": "'float16'",
        "--kmeans=fais": "'faiss'",
        "--precision=FP32": "'fp32'",
        "--clip=vit-b-16": "'ViT-B-16'",
        "--clip=ViT-B/16": "'ViT-B-16'",
        "--dataset=scenes --clip=ViT-B-16 --clip-weights=laion2b": "'laion2b_s34b_b88k'",
        "--dataset=coco --unseen=giraf": "'giraffe'",
        "--datset=coco": "'--dataset'",
        "--Clip=tiny": "'--clip'",
    },
    "train": {
        "--student=swinb": "'swin-b'",
        "--arch=unett": "'unet'",
        "--encoder=resnet5": "'resnet50'",
        "--encoder=convnext_tiny": "'tu-convnext_tiny'",
        "--encoder=tu-swin_bas_patch4_window7_224": "'tu-swin_base_patch4_window7_224'",
        "--encoder-weights=imagnet": "'imagenet'",
        "--glm=Attention": "'attention'",
    },
    "evaluate": {"x --dataset=scenes --unseen=tigr": "'tiger'"},
    "reproduce": {"cocoo": "'coco'"},
    "precomput": {"": "'precompute'"},
    "Train": {"": "'train'"},
}
"""Mistakes by command, and the first suggestion."""
MISSING = {
    "evaluate runs/coca --dataset scenes": "'runs/coco'",
    "evaluate runs --dataset scenes": "runs in it: runs/coco",
    "predict runs/coca x.png": "'runs/coco'",
    "export runs/coca": "'runs/coco'",
    "report runs/coca": "'runs/coco'",
    "show runs/coca": "'runs/coco'",
    "evaluate runs/coco --dataset folder --root nothing": "no such folder: nothing",
    "precompute --dataset coco": "data/coco",
    "precompute --dataset folder --root nothing --unseen a": "no such folder: nothing",
    "train": "run `precompute` first",
    "train --cache nothing.zarr": "no such cache",
    "cluster nothing.zarr --name x": "no such cache",
    "verify nothing.zarr": "no such cache",
    "info nothing.zarr": "no such cache",
}
"""Commands with paths of nothing, in a folder with the run `runs/coco`, and what their message says."""
REFUSED = {
    "precompute": ("--device=cud", "--device=cuda:x", "--limit=1_0", "--view-scale=0_1,1", "--max-failures=0_1"),
    "cluster x --name=y": ("--windows=1_0", "--threshold=0_1"),
    "export x --onnx=y": ("--gamma=1_0",),
    "train": ("--iterations=1_0", "--lr=1_0", "--device=mps"),
}
"""Values that are refused without a suggestion."""


def _errors(lines, folder, heavy=("torch", "open_clip", "zarr", "dask", "timm", "pandas", "scipy")):
    """The first lines that commands print when they are refused, in one process that must not import the packages."""
    code = f"""
import cli, os, sys
os.chdir({str(folder)!r})
for line in {list(lines)!r}:
    sys.argv = ["cli.py", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        assert end.code in (1, 2), line
imported = {set(heavy)!r} & sys.modules.keys()
assert not imported, imported
sys.exit()
"""
    done = in_a_process(prelude=code)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture
def folder(tmp_path):
    """A working directory with the runs `x` and `runs/coco`."""
    for run in ("x", "runs/coco"):
        card = tmp_path / run / "step_00000001/model.json"
        card.parent.mkdir(parents=True)
        card.write_text("{}")
    return tmp_path


def test_missing_paths_are_refused_before_torch_is_imported(folder):
    errors = _errors(MISSING, folder, ("torch", "open_clip", "timm"))
    for error, (line, said) in zip(errors, MISSING.items(), strict=True):
        assert said in error, line


def test_misspelled_names_are_refused_before_heavy_imports(folder):
    suggested = {
        f"{command} {mistake}": hint for command, entry in MISSPELLED.items() for mistake, hint in entry.items()
    }
    lines = [*suggested, *(f"{command} {mistake}" for command, entry in REFUSED.items() for mistake in entry)]
    for message, line in zip(_errors(lines, folder), lines, strict=True):
        assert message.startswith("error: ")
        assert line.split()[-1].split("=")[0] in message
        assert line not in suggested or f"did you mean {suggested[line]}" in message, message


def test_misspelled_class_of_a_folder_is_refused_before_heavy_imports(tmp_path):
    root = draw_folder(tmp_path / "own", ("sky", "tree"), {"a": (np.zeros((8, 8, 3), np.uint8), None)})
    given = ("precompute", "--dataset", "folder", "--root", root, "--unseen", "tre")
    done = in_a_process(*given, prelude="import sys\nsys.modules['torch'] = None")
    assert done.stderr == "error: --unseen: no class named 'tre' in folder; did you mean 'tree'?\n"
    assert done.returncode == 2


def test_choices_match_the_implementations():
    import open_clip

    from data_cache.layout import DENSE
    from pipeline.masks.kmeans import backend_name
    from pipeline.teacher.clip import DTYPES

    assert clip_configs().keys() == set(open_clip.list_models())
    assert {(model, tag) for model, tags in pretrained_tags().items() for tag in tags} == set(
        open_clip.list_pretrained()
    )
    for model, tags in pretrained_tags().items():
        for tag, quick_gelu in tags.items():
            assert open_clip.get_pretrained_cfg(model, tag).get("quick_gelu", False) == quick_gelu, (model, tag)
    assert choices_of(PrecomputeConfig, "dense") == tuple(DENSE)
    assert choices_of(PrecomputeConfig, "precision") == ("auto", *DTYPES)
    message = refused(lambda: backend_name("none", "cpu"), kind=UsageError)
    assert all(name in message for name in choices_of(PrecomputeConfig, "kmeans"))


def test_names_of_students_match_the_packages():
    import segmentation_models_pytorch as smp
    import timm

    from trainer.students import mscan

    assert {*choices_of(TrainConfig, "arch")} == {*smp.MODEL_ARCHITECTURES_MAPPING, names.SEGNEXT}
    own = {*mscan.ENCODERS}  # a test that ran before may have added them to smp's
    assert {*names.MSCAN} == own
    assert {*names.smp_encoders()} == {*smp.encoders.get_encoder_names()} - own
    tags = {tag for entry in smp.encoders.encoders.values() for tag in entry["pretrained_settings"]}
    assert {*names.smp_tags()} == tags
    assert {*names.timm_models()} == {*timm.list_models()} - {MICRO_SWIN.removeprefix("tu-")}


@pytest.mark.parametrize(
    "encoder", ["mit_b0", "mscan_b", "tu-resnet50", "tu-swin_base_patch4_window7_224.ms_in1k", "timm-efficientnet-b0"]
)
def test_valid_encoders_are_accepted(encoder):
    names.check_encoder(encoder)


@pytest.mark.parametrize("weights", ["imagenet", "none", "advprop", "own/weights", "weights.pth"])
def test_valid_encoder_weights_are_accepted(weights):
    names.check_encoder_weights(weights)


@pytest.mark.parametrize("option", ["dataset", "dense", "kmeans", "precision"])
def test_all_choices_are_accepted(option):
    assert choices_of(PrecomputeConfig, option)
    for name in choices_of(PrecomputeConfig, option):
        check_option(PrecomputeConfig, option, name)


def test_all_prompt_sets_are_accepted():
    for name in prompt_sets():
        CHECKS["prompts"](name)
        CHECKS["prompts"](f"{name}-clean")


@pytest.mark.parametrize(("flag", "names"), [("--preset", PRESETS), ("--student", STUDENTS)])
def test_only_known_presets_and_students_are_accepted(flag, names):
    check = choice(flag, names, "").callback
    assert [check(name) for name in (*names, None)] == [*names, None]
    refused(lambda: check("other"), flag, *names, kind=UsageError)


@pytest.mark.parametrize("clip", ["ViT-B-16-quickgelu", "tiny", "own/config.json", "hf-hub:someone/model"])
def test_valid_clip_names_are_accepted(clip):
    check_clip(clip)


def test_suggestions_ignore_case_and_list_the_nearest_first():
    models = ["ViT-B-16-SigLIP-i18n-256", "ViT-B-16", "vit_medium_patch16", "ViT-B-16-plus", "RN50"]
    assert did_you_mean("vit-b-16", models).startswith("; did you mean 'ViT-B-16' or 'ViT-B-16-plus' or")
    assert did_you_mean("qqq", models) == did_you_mean("", models) == ""


NUMBERED = (
    "0: sky\n1: road",
    "0 sky\n1 road",
    "1,sky\n2,road\n3,tree",
    "0\tsky\n1\tgarden gnome",
    "1. sky\n2. road",
    "0 = sky\n1 = road",
    "(0) sky\n(1) road",
    "sky: 0\nroad: 1",
    "1: sky\n3: road\n7: tree",
)
UNNUMBERED = (
    "7 up",
    "7 up\nsky",
    "1 person\n2 people",
    "747-jet\n757-jet liner",
    "route 66\narea 51",
    "1 euro\n2 euro",
    "1 cent\n2 cent\n5 cent",
    "sky\n1: road",
    "3d printer\n4x4",
    "0\n1",
)


@pytest.mark.parametrize("text", NUMBERED)
def test_numbered_class_lists_are_refused(tmp_path, text):
    file = tmp_path / "classes.txt"
    file.write_text(text)
    refused(lambda: read_classes(file), file, "contains a number", "as in 'sky'")
    refused(lambda: parse_names(str(file)), file, "contains a number", "as in 'sky'", kind=UsageError)


@pytest.mark.parametrize("text", UNNUMBERED)
def test_names_starting_with_a_number_are_accepted(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    names = tuple(text.split("\n"))
    assert read_classes(tmp_path / "classes.txt") == names == parse_names(str(tmp_path / "classes.txt"))


def test_image_names_may_contain_commas():
    ids = ["images/a,b.jpg", "images/a.jpg", "images/b.jpg", "images/deep/c,d.png"]
    assert (
        choose_images(ids, ["a,b.jpg"]) == choose_images(ids, ["a,b"]) == choose_images(ids, ["images/a,b.jpg"]) == [0]
    )
    assert choose_images(ids, ["a,b.jpg", "c,d"]) == [0, 3]
    assert choose_images(ids, ["a.jpg,b.jpg"]) == [1, 2]
    assert choose_images(ids, ["0,2"]) == [0, 2]
