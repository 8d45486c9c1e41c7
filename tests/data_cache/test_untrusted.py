"""A cache from somebody else: what it says of itself is not believed, and nothing outside of it is touched."""

import json

import pytest
from caches import complete
from refusals import refused

from data_cache import limits
from data_cache.damage import check_files
from data_cache.schema import metadata_hash
from data_cache.store import Cache


@pytest.fixture
def cache(tmp_path):
    path = tmp_path / "theirs.zarr"
    complete(path)
    return path


def forge(cache, name, change):
    """Alter the metadata of an array as somebody would who knows how it is sealed."""
    file, top = cache / name / "zarr.json", cache / "zarr.json"
    node, root = json.loads(file.read_text()), json.loads(top.read_text())
    change(node)
    file.write_text(json.dumps(node))
    root["consolidated_metadata"]["metadata"][name] = node
    top.write_text(json.dumps(root))
    root["attributes"]["metadata_sha256"] = metadata_hash(cache)
    top.write_text(json.dumps(root))


def test_a_forged_cache_of_true_sizes_would_be_opened(cache):
    forge(cache, "cls", lambda node: node["attributes"].update(note="harmless"))
    assert check_files(Cache(cache)) == (check_files(Cache(cache))[0], [])


@pytest.mark.parametrize("name", ["cls", "masks/default/label", "image/status", "view/box", "journal"])
def test_shapes_that_do_not_belong_together_are_refused(cache, name):
    forge(cache, name, lambda node: node.update(shape=[10**13, *node["shape"][1:]]))
    refused(lambda: Cache(cache), "entries instead of" if name != "cls" else "")


@pytest.mark.parametrize("images", [10**9, 10**13])
def test_sizes_beyond_memory_are_refused_before_anything_is_allocated(cache, images):
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
    refused(lambda: Cache(cache), f"says it holds {images} images", "this machine has")


def test_a_shard_of_a_billion_images_is_refused(cache):
    def enlarge(node):
        node["chunk_grid"]["configuration"]["chunk_shape"][0] = 10**9

    forge(cache, "cls", enlarge)
    forge(cache, "journal", lambda node: node.update(shape=[1]))
    forge(cache, "masks/default/journal", lambda node: node.update(shape=[1]))
    refused(lambda: Cache(cache), "1000000000 a shard")


def test_a_codec_that_we_do_not_use_is_refused(cache):
    forge(cache, "cls", lambda node: node["codecs"].append({"name": "gzip", "configuration": {"level": 1}}))
    refused(lambda: Cache(cache), "codec gzip")


@pytest.mark.parametrize("key", ["../outside", "/etc/hostname", "cls/../../outside"])
def test_a_record_that_leads_out_of_the_cache_is_refused_and_its_path_not_read(cache, tmp_path, key):
    (tmp_path / "outside").write_text("private")
    group = Cache(cache, mode="r+").group
    record = json.loads(str(group["journal"][0]))
    record["files"][key] = [7, 0]
    group["journal"][0] = json.dumps(record)
    refused(lambda: Cache(cache).load("default"), "leads out of the cache")
    assert any("leads out of the cache" in line for line in check_files(Cache(cache))[1])


def test_metadata_that_names_nodes_outside_is_refused(cache):
    root = json.loads((cache / "zarr.json").read_text())
    root["consolidated_metadata"]["metadata"]["../outside"] = {}
    (cache / "zarr.json").write_text(json.dumps(root))
    refused(lambda: Cache(cache), "metadata is damaged")


def test_json_has_a_greatest_size(cache, monkeypatch):
    monkeypatch.setattr(limits, "JSON_BYTES", 100)
    refused(lambda: Cache(cache), "metadata is damaged")


@pytest.mark.parametrize("lost", ["cls", "journal", "masks/default/label"])
def test_a_group_without_our_arrays_is_refused(cache, lost):
    root = json.loads((cache / "zarr.json").read_text())
    del root["consolidated_metadata"]["metadata"][lost]
    (cache / "zarr.json").write_text(json.dumps(root))
    root["attributes"]["metadata_sha256"] = metadata_hash(cache)
    (cache / "zarr.json").write_text(json.dumps(root))
    refused(lambda: Cache(cache), "lacks arrays")
