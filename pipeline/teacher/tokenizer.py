"""Tokenizers of open_clip's text towers. Those of SigLIP and multilingual models come from the Hugging Face Hub."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from data_cache.errors import UserError, one_line

if TYPE_CHECKING:
    import torch

TOKENIZER = "hf_tokenizer_name"


def load_tokenizer(
    name: str, model: str, text_config: Mapping[str, Any], offline: str
) -> "Callable[..., torch.Tensor]":
    """The tokenizer that a config names (on the Hub, or a folder of its files), else that of open_clip's `model`.

    Raises UserError, about the CLIP called `name`, if its files or the package that reads them are missing. `offline`
    is why nothing can be downloaded, or "".
    """
    import open_clip

    source = text_config.get(TOKENIZER)
    if not source:
        return open_clip.get_tokenizer(model)
    try:
        # not by `get_tokenizer`, which looks for the files of a config file in the folder of that file only
        return open_clip.tokenizer.HFTokenizer(
            source,
            context_length=text_config.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH),
            tokenizer_mode=text_config.get("tokenizer_mode"),
            **text_config.get("tokenizer_kwargs", {}),
        )
    except ImportError as error:
        raise UserError(
            f"--clip {name}: its tokenizer needs another package ({one_line(error)}); "
            "run `pip install 'clipteacher[siglip]'`"
        ) from None
    except Exception as error:
        tags = open_clip.list_pretrained_tags_by_model(name)
        repositories = [open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "").strip("/") for tag in tags]
        raise UserError(
            f"--clip {name}: its tokenizer {source} cannot be loaded ({offline or one_line(error)}); on another "
            f"machine, download all files of https://huggingface.co/{next(filter(None, repositories), source)} into a "
            "folder, and pass --clip local-dir:FOLDER"
        ) from None
