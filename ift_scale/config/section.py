"""Base class and value types of all settings."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ift_scale.treatments import POOLED

BUILTIN_MODEL = "world"

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


RESERVED = {
    "all": "names the row over all domains",
    POOLED: "names arms that are trained across domains",
    **dict.fromkeys(("HOMO", "ID", "OOD"), "is a test group derived from the domains"),
}


def _no_reserved_name(name: str) -> str:
    if name in RESERVED:
        raise ValueError(f"'{name}' {RESERVED[name]}; choose another name")
    return name


# Names of domains and groups become part of file names and keys.
Domain = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$"), AfterValidator(_no_reserved_name)
]

# The dataset's split that serves as dev (demonstrations), train or test.
Splits = Annotated[dict[Literal["dev", "train", "test"], Text], Field(min_length=1)]


class Section(BaseModel):
    """A strict section: no unknown keys, no type conversion, no infinite or NaN values."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
    )
