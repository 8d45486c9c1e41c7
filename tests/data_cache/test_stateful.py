"""The cache matches a model of it after any sequence of writes, kills, growth, damage and reopening."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import zarr.storage._local as local
from caches import ATTRIBUTES, LAYOUT, MASKS, create, shard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from data_cache.errors import UserError
from data_cache.integrity import damaged_shards, verify_files
from data_cache.reader import Cache
from data_cache.transaction import REDO, complete_transaction
from data_cache.writer import CacheWriter

SETS = ("default", "fine")


class Killed(BaseException):
    """Simulates a killed process."""


class CacheMachine(RuleBasedStateMachine):
    """`done` maps each finished shard to the content it was written from, for features and each mask set."""

    @initialize()
    def create_cache(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "c.zarr"
        self.layout = LAYOUT
        create(self.path)
        self.done = {"": {}, "default": {}, "fine": {}}
        self.fine = False
        self.cache = CacheWriter(self.path)

    def teardown(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    def content(self, number, seed):
        data = shard(number, self.layout)
        rng = np.random.default_rng((number, seed))
        data.cls[:] = rng.normal(size=data.cls.shape)
        data.label[:] = rng.integers(0, 3, data.label.shape)
        return data

    def completes(self, action, after):
        """Run an action, killing it once it has written `after` files; whether it completed."""
        put, replace, count = local._put, Path.replace, [0]

        def count_or_kill():
            count[0] += 1
            if count[0] > after:
                raise Killed

        def killable_put(*arguments, **options):
            count_or_kill()
            return put(*arguments, **options)

        def killable_replace(self, target):
            if REDO in self.parts:
                count_or_kill()
            return replace(self, target)

        local._put, Path.replace = killable_put, killable_replace
        try:
            action()
        except Killed:
            return False
        finally:
            local._put, Path.replace = put, replace
        return True

    def reopen_for_writing(self):
        complete_transaction(self.path)
        self.cache = CacheWriter(self.path)
        self.layout = self.cache.layout

    @rule(data=st.data(), seed=st.integers(0, 9))
    def write(self, data, seed):
        number = data.draw(st.integers(0, self.layout.shards - 1))
        content = self.content(number, seed)
        self.cache.invalidate_shard(number)
        for part in self.done.values():
            part.pop(number, None)
        self.cache.write_shard(number, content, "default")
        self.done[""][number] = self.done["default"][number] = content

    @rule(data=st.data(), seed=st.integers(0, 9), after=st.integers(0, 14))
    def write_and_be_killed(self, data, seed, after):
        number = data.draw(st.integers(0, self.layout.shards - 1))
        content = self.content(number, seed)
        self.cache.invalidate_shard(number)
        for part in self.done.values():
            part.pop(number, None)
        if self.completes(lambda: self.cache.write_shard(number, content, "default"), after):
            self.done[""][number] = self.done["default"][number] = content
        elif self.cache.journal("masks/default").record(number):
            self.done["default"][number] = content
        self.reopen_for_writing()

    @precondition(lambda self: not self.fine)
    @rule(after=st.one_of(st.none(), st.integers(0, 6)))
    def add_masks(self, after):
        settings = {**MASKS, "threshold": 0.9}
        completed = self.completes(lambda: self.cache.add_masks("fine", settings), 99 if after is None else after)
        self.reopen_for_writing()
        assert ("fine" in self.cache.masks) >= completed
        self.fine = "fine" in self.cache.masks

    @precondition(lambda self: self.fine and self.done[""])
    @rule(data=st.data(), seed=st.integers(0, 9))
    def write_masks(self, data, seed):
        number = data.draw(st.sampled_from(sorted(self.done[""])))
        content = self.content(number, seed)
        self.cache.write_masks(number, content.label, content.count, "fine")
        self.done["fine"][number] = content

    @precondition(lambda self: self.layout.images < 12)
    @rule(more=st.integers(1, 4), after=st.one_of(st.none(), st.integers(0, 80)))
    def grow(self, more, after):
        before, names = self.layout, [f"images/{self.layout.images + i}.jpg" for i in range(more)]
        fingerprint = ATTRIBUTES["fingerprint"] | {"grown": before.images + more}
        completed = self.completes(lambda: self.cache.extend(names, fingerprint), 10**6 if after is None else after)
        self.reopen_for_writing()
        assert self.layout.images in (before.images, before.images + more)
        assert (self.layout.images > before.images) >= completed
        assert (self.cache.fingerprint == fingerprint) == (self.layout.images > before.images)
        if self.layout.images > before.images and before.images % before.shard:
            for part in self.done.values():  # the last shard has more images now
                part.pop(before.shards - 1, None)

    @precondition(lambda self: self.done[""])
    @rule(data=st.data(), name=st.sampled_from(["cls", "masks/default/label", "dense"]))
    def damage_and_write_again(self, data, name):
        number = data.draw(st.sampled_from(sorted(self.done[""])))
        files = [f for f in (self.path / name / f"c/{number}").rglob("*") if f.is_file()]
        content = bytearray(files[0].read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        files[0].write_bytes(content)
        part = "masks/default" if "masks" in name else ""
        if "masks" in name and number not in self.done["default"]:
            return
        assert damaged_shards(self.cache, part) == [number]
        self.write_same(number)

    def write_same(self, number):
        content = self.done[""][number]
        self.cache.write_shard(number, content, "default")
        self.done["default"][number] = content

    @rule()
    def remove_leftovers_and_reopen(self):
        self.cache.remove_leftovers()
        self.reopen_for_writing()
        assert not list(self.path.rglob("*.partial"))

    @invariant()
    def done_shards_read_back_and_others_are_pending(self):
        if not hasattr(self, "cache"):
            return
        cache = Cache(self.path)
        assert cache.ids() == [f"images/{i}.jpg" for i in range(self.layout.images)]
        shards = set(range(self.layout.shards))
        assert set(cache.pending_shards("default")) == shards - (self.done[""].keys() & self.done["default"].keys())
        if self.fine:
            assert set(cache.pending_shards("fine")) == shards - (self.done[""].keys() & self.done["fine"].keys())
        for number, content in self.done[""].items():
            span = self.layout.span(number)
            np.testing.assert_array_equal(cache.read("cls", span), content.cls)
            np.testing.assert_array_equal(cache.dense(span.start), content.dense[0])
        for name in SETS[: 1 + self.fine]:
            for number, content in self.done[name].items():
                np.testing.assert_array_equal(
                    cache.read(f"masks/{name}/label", self.layout.span(number)), content.label
                )
        assert all("not done" in line for line in verify_files(cache)[1])
        if cache.pending_shards("default"):
            with pytest.raises(UserError, match="not done"):
                cache.load("default")
        else:
            assert len(cache.load("default").cls) == self.layout.images


CacheMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=12, deadline=None)
TestCache = CacheMachine.TestCase
