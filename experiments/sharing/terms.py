"""What only the person who publishes something can state: its license, and the dataset it belongs to."""

from collections.abc import Mapping
from dataclasses import dataclass, field

_LICENSE = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Terms:
    """What only the user can state.

    Args:
        license: `license`, and for other licenses `license_name` and `license_link`; empty if none is stated.
        hub_dataset: the Hugging Face dataset to link to.

    """

    license: Mapping[str, str] = field(default_factory=dict)
    hub_dataset: str | None = None

    @property
    def line(self) -> str:
        """One sentence on the license."""
        name = self.license.get("license_name") or self.license.get("license")
        if name:
            return f"`{name}`, as stated by the person who published it."
        return "no license is stated. Until the author adds one, you have no permission to use or share them."


def stated_license(page: str) -> dict[str, str]:
    """The license in the metadata of a README.md, which its author may have written by hand; empty if none."""
    if not page.startswith("---"):
        return {}
    from huggingface_hub import RepoCard

    try:
        data = RepoCard(page, ignore_metadata_errors=True).data
    except Exception:  # YAML's errors are of many types
        return {}
    return {name: value for name in _LICENSE if isinstance(value := data.get(name), str)}
