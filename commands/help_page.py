"""Help pages: placeholders instead of types, and --help in the last panel."""

from typing import Any

from typer.core import TyperCommand

RUN = "Run"
"""The last panel of a help page."""
PLACEHOLDERS = {
    "<str>": "NAME",
    "<int>": "N",
    "<float>": "NUMBER",
    "<path>": "PATH",
    "<list[Path]>": "PATH",
    "<bool>": "",
}
"""What a help page shows for each type: switches take no value."""


class HelpPage:
    """Mixed into a typer command, which would show `<int>` and `<bool>`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """The parameters, as a help page shows them."""
        params = super().get_params(ctx)  # type: ignore[misc]
        in_panels = any(getattr(param, "rich_help_panel", None) == RUN for param in params)
        for param in params:
            kind = param.display_type(ctx)
            shown = PLACEHOLDERS.get(kind, kind)
            param.display_type = lambda ctx, shown=shown: shown
            if in_panels and param.name == "help":
                param.rich_help_panel = RUN
        return params


class Command(HelpPage, TyperCommand):
    """A command with such a help page."""
