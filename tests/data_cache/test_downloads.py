"""Downloads from the Hub: normal if it answers; otherwise only files downloaded before, and no retries."""

import socket

import pytest
from hub import CLOSED, SILENT, hub
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from data_cache.system.downloads import hub_downloads

FILES = {"config.json": b"{}"}


@pytest.mark.parametrize(
    ("answer", "words"), [(CLOSED, "refused"), (SILENT, "no answer within"), (503, "status 503"), (500, "status 500")]
)
def test_a_hub_that_does_not_answer_is_asked_once(answer, words, tmp_path, monkeypatch, caplog):
    before = socket.getdefaulttimeout()
    with hub(answer, tmp_path, monkeypatch) as requests:
        with hub_downloads() as problem, pytest.raises(LocalEntryNotFoundError):
            hf_hub_download("someone/model", "config.json", cache_dir=tmp_path)
        assert constants.ENDPOINT in problem
        assert words in problem
        assert len(requests) <= 1
    assert not caplog.records
    assert not constants.HF_HUB_OFFLINE
    assert socket.getdefaulttimeout() == before


def test_files_downloaded_before_are_available_offline(tmp_path, monkeypatch):
    with hub(404, tmp_path, monkeypatch, FILES), hub_downloads() as problem:
        assert problem == ""
        path = hf_hub_download("someone/model", "config.json", cache_dir=tmp_path)
    with hub(SILENT, tmp_path, monkeypatch), hub_downloads() as problem:
        assert problem
        assert hf_hub_download("someone/model", "config.json", cache_dir=tmp_path) == path


def test_offline_mode_of_the_user_is_respected(tmp_path, monkeypatch):
    with hub(404, tmp_path, monkeypatch, FILES) as requests:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with hub_downloads() as problem:
            assert problem == "HF_HUB_OFFLINE is set"
        assert constants.HF_HUB_OFFLINE
        assert not requests
