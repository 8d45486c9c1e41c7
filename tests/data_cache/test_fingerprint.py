from data_cache.fingerprint import difference, hash_names

STORED = {"clip": {"model": "ViT", "image_size": 512}, "views": {"count": 1}, "std": [0.1, 0.2]}


def test_equal_fingerprints_have_no_difference():
    assert difference(STORED, {"std": (0.1, 0.2), "views": {"count": 1}, "clip": dict(STORED["clip"])}) == []


def test_difference_names_the_setting_and_both_values():
    requested = {**STORED, "clip": {"model": "ViT", "image_size": 256}}
    assert difference(STORED, requested) == ["clip.image_size: 512 there, 256 here"]


def test_setting_on_one_side_only_is_a_difference():
    requested = {key: value for key, value in STORED.items() if key != "views"}
    assert difference(STORED, requested) == ["views.count: 1 there, absent here"]


def test_hash_of_names_depends_on_order_and_boundaries():
    hashes = {hash_names(names) for names in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["ab", "c", ""], ["abc"])}
    assert len(hashes) == 5
