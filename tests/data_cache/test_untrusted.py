"""An untrusted cache: its metadata is checked before use, and no file outside of it is touched."""

import json
import shutil

import pytest
from caches import complete
from refusals import refused

from data_cache import limits
from data_cache.integrity import damaged_shards, verify_files
from data_cache.metadata import metadata_hash
from data_cache.reader import Cache
from data_cache.writer import CacheWriter

SHAPES = {
    **{f"image/{name}": (5,) for name in ("id", "path", "content_hash", "label_hash", "status")},
    "image/size": (5, 2),
    "image/journal": (1,),
    "view/box": (5, 2, 4),
    "view/flip": (5, 2),
    "cls": (5, 2, 8),
    "dense": (5, 2, 2, 3, 8),
    "journal": (3,),
    "masks/default/label": (5, 2, 2, 3),
    "masks/default/count": (5, 2),
    "masks/default/journal": (3,),
    "text/single/features": (3, 8),
    "text/single/name": (3,),
    "text/single/template": (1,),
    "text/single/journal": (1,),
}
"""Array shapes of the test cache: 5 images in shards of 2, 2 views, 8 channels, 2 x 3 tokens, 3 classes."""


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "theirs.zarr"
    complete(path)
    return path


def forge(cache, name, change):
    """Alter the metadata of an array and recompute the hash that protects it."""
    file, root_file = cache / name / "zarr.json", cache / "zarr.json"
    node, root = json.loads(file.read_text()), json.loads(root_file.read_text())
    change(node)
    file.write_text(json.dumps(node))
    root["consolidated_metadata"]["metadata"][name] = node
    write_root(cache, root)


def write_root(cache, root):
    """Write the root metadata with a valid hash."""
    (cache / "zarr.json").write_text(json.dumps(root))
    root["attributes"]["metadata_sha256"] = metadata_hash(cache)
    (cache / "zarr.json").write_text(json.dumps(root))


def test_forged_cache_with_consistent_shapes_opens(cache):
    forge(cache, "cls", lambda node: node["attributes"].update(note="harmless"))
    assert verify_files(Cache(cache)) == (verify_files(Cache(cache))[0], [])


@pytest.mark.parametrize("name", ["cls", "masks/default/label", "image/status", "view/box", "journal"])
def test_inconsistent_shapes_are_rejected(cache, name):
    forge(cache, name, lambda node: node.update(shape=[10**13, *node["shape"][1:]]))
    refused(lambda: Cache(cache), "instead of")


@pytest.mark.parametrize("images", [10**9, 10**13])
def test_sizes_beyond_memory_are_rejected_before_allocation(cache, images):
    def enlarge(node):
        node["shape"][0] = images

    journals = ("journal", "masks/default/journal")
    names = [f.parent.relative_to(cache).as_posix() for f in cache.rglob("zarr.json")]
    for name in names:
        if json.loads((cache / name / "zarr.json").read_text())["node_type"] != "array" or name.startswith("text/"):
            continue
        if name in journals:
            forge(cache, name, lambda node: node.update(shape=[images // 2]))
        elif name != "image/journal":
            forge(cache, name, enlarge)
    refused(lambda: Cache(cache), f"claims to hold {images} images", "this machine has")


def test_oversized_shards_are_rejected(cache):
    def enlarge(node):
        node["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**9

    forge(cache, "cls", enlarge)
    forge(cache, "journal", lambda node: node.update(shape=[1]))
    forge(cache, "masks/default/journal", lambda node: node.update(shape=[1]))
    refused(lambda: Cache(cache), "1000000000 images per shard")


@pytest.mark.parametrize("name", sorted(SHAPES.keys() - {"text/single/template"}))  # prompts may be any number
def test_shape_of_every_array_is_checked(cache, name):
    for axis in range(len(SHAPES[name])):
        shape = list(SHAPES[name])
        shape[axis] += 1
        forge(cache, name, lambda node, shape=shape: node.update(shape=shape))
        refused(lambda: Cache(cache), "it is not trusted")


def test_shapes_list_all_arrays_of_a_cache(cache):
    nodes = {
        file.parent.relative_to(cache).as_posix(): json.loads(file.read_text()) for file in cache.rglob("zarr.json")
    }
    assert {name: tuple(node["shape"]) for name, node in nodes.items() if node["node_type"] == "array"} == SHAPES


@pytest.mark.parametrize("classes", [10**6, 10**11])
def test_oversized_vocabularies_are_rejected(cache, classes):
    forge(cache, "text/single/name", lambda node: node.update(shape=[classes]))
    forge(cache, "text/single/features", lambda node: node.update(shape=[classes, 8]))
    refused(lambda: Cache(cache), "it is not trusted")


@pytest.mark.parametrize("part", ["fingerprint", "recorded"])
@pytest.mark.parametrize("value", [None, "x", {}, {"clip": {}, "dataset": "x"}])
def test_cache_without_settings_is_rejected(cache, part, value):
    if (part, value) == ("recorded", {}):
        pytest.skip("an empty record is valid")
    if part == "recorded" and value:
        value = [value]
    root = json.loads((cache / "zarr.json").read_text())
    root["attributes"][part] = value
    write_root(cache, root)
    refused(lambda: Cache(cache), "how it was made")


def test_mask_set_without_settings_is_rejected(cache):
    forge(cache, "masks/default", lambda node: node["attributes"].pop("windows"))
    refused(lambda: Cache(cache), "how it was made")


def test_deeply_nested_metadata_is_rejected(cache):
    (cache / "zarr.json").write_text("[" * 200_000)
    refused(lambda: Cache(cache), "metadata is damaged")


@pytest.mark.parametrize(
    "forged",
    [
        {"ok": "2"},
        {"ok": None},
        {"failed": -1},
        {"shard": 1},
        {"shard": True},
        {"files": []},
        {"files": {}},
        {"files": {"cls/c/0/0/0": None}},
        {"more": 1},
    ],
    ids=str,
)
def test_forged_journal_records_are_rejected(cache, forged):
    group = CacheWriter(cache).group
    group["journal"][0] = json.dumps(json.loads(str(group["journal"][0])) | forged)
    refused(lambda: Cache(cache).load("default"), "a damaged journal record")
    assert any("a damaged journal record" in line for line in verify_files(Cache(cache))[1])
    assert damaged_shards(Cache(cache), "") == [0]


def test_misplaced_journal_records_are_rejected(cache):
    shutil.copyfile(cache / "journal/c/0", cache / "journal/c/1")
    assert damaged_shards(Cache(cache), "") == [1]
    refused(lambda: Cache(cache).load("default"), "shard 0 in place of shard 1")


def test_unknown_codecs_are_rejected(cache):
    forge(cache, "cls", lambda node: node["codecs"].append({"name": "gzip", "configuration": {"level": 1}}))
    refused(lambda: Cache(cache), "codec gzip")


@pytest.mark.parametrize("key", ["../outside", "/etc/hostname", "cls/../../outside"])
def test_record_paths_outside_the_cache_are_rejected(cache, tmp_path, key):
    (tmp_path / "outside").write_text("private")
    group = CacheWriter(cache).group
    record = json.loads(str(group["journal"][0]))
    record["files"][key] = [7, 0]
    group["journal"][0] = json.dumps(record)
    refused(lambda: Cache(cache).load("default"), "a path outside the cache")
    assert any("a path outside the cache" in line for line in verify_files(Cache(cache))[1])


def test_metadata_nodes_outside_the_cache_are_rejected(cache):
    root = json.loads((cache / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["../outside"] = {}
    (cache / "zarr.json").write_text(json.dumps(root))
    refused(lambda: Cache(cache), "metadata is damaged")


def test_oversized_json_is_rejected(cache, monkeypatch):
    monkeypatch.setattr(limits.read_json, "__defaults__", (100,))
    refused(lambda: Cache(cache), "metadata is damaged")


@pytest.mark.parametrize("missing", ["cls", "journal", "masks/default/label"])
def test_group_without_required_arrays_is_rejected(cache, missing):
    root = json.loads((cache / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"][missing]
    write_root(cache, root)
    refused(lambda: Cache(cache), "lacks arrays")
