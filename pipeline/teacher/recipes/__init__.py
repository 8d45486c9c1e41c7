"""Dense recipes: how dense tokens are computed from the input of CLIP's last block.

`output` is the paper's: the last block's own output. Every other recipe is a file here with a function
`last_block(block, x, q, k, v, grid)`: the block, its input, and the queries, keys and values of ln_1(x) by head. It
replaces the last block for dense tokens; the final LayerNorm and the projection follow as usual, and CLS tokens stay
what they are.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

OUTPUT = "output"
RECIPES = (OUTPUT, *sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py")))
"""Names of all recipes; torch is not imported to list them."""
LastBlock = Callable[[Any, "Tensor", "Tensor", "Tensor", "Tensor", tuple[int, int]], "Tensor"]


def last_block(name: str) -> LastBlock:
    """The function of a recipe other than `output`."""
    return import_module(f"{__name__}.{name}").last_block
