"""One line for what pydantic finds wrong in a user's file: where in the user's words, what, what to do."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from doge_ds.config_mistakes import first_mistake


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Wheel(Strict):
    spokes: int = Field(default=32, ge=1)


class Bicycle(Strict):
    wheels: list[Wheel]
    spare: Wheel | None = None
    colours: list[str] = Field(default=["red"], min_length=1)
    names: dict[str, int] = {}
    frame: str | list[int] = "steel"

    @model_validator(mode="after")
    def _has_a_wheel(self) -> "Bicycle":
        if not self.wheels:
            raise ValueError("wheels are none")
        return self


def mistake(values: Any, section: str = "") -> str:
    with pytest.raises(ValidationError) as caught:
        Bicycle.model_validate(values)
    return str(first_mistake(Bicycle, "b.json", caught.value, section, remedy="add one"))


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"wheels": [], "frane": "wood"}, "b.json: frane: unknown key; did you mean 'frame'?"),
        ({"wheels": [{}, {"spoks": 3}]}, "b.json: wheels.1.spoks: unknown key; did you mean 'spokes'?"),
        ({"wheels": [{}], "spare": {"spok": 3}}, "b.json: spare.spok: unknown key; did you mean 'spokes'?"),
        ({"wheel": []}, "b.json: wheel: unknown key; did you mean 'wheels'?"),
        ({"wheels": [{}], "spokes": 3}, "b.json: spokes: unknown key; did you mean 'spare.spokes'?"),
        ({"wheels": [{}], "spare": {"colours": []}}, "b.json: spare.colours: unknown key; did you mean 'colours'?"),
        ({}, "b.json: wheels: is missing; add it"),
        ({"wheels": []}, "b.json: the file: wheels are none; add one"),
        (
            {"wheels": [{"spokes": 0}]},
            "b.json: wheels.0.spokes: 0 cannot stand; it should be greater than or equal to 1",
        ),
        (
            {"wheels": [{}], "colours": []},
            "b.json: colours: [] cannot stand; it should have at least 1 item after validation, not 0",
        ),
        ({"wheels": 2}, "b.json: wheels: 2 cannot stand; it should be a valid list"),
        ({"wheels": [{}], "frame": 5}, "b.json: frame: 5 cannot stand; it should be a valid string"),
        ({"wheels": [{}], "names": {"a": "b"}}, 'b.json: names: "b" cannot stand; it should be a valid integer'),
        ([], "b.json: the file: [] cannot stand; it should be a valid dictionary or instance of Bicycle"),
    ],
)
def test_the_line(values: Any, line: str) -> None:
    assert mistake(values) == line


def test_keys_of_a_part_of_a_file_bear_its_name() -> None:
    assert mistake({"wheels": [{"spoks": 1}]}, "garage.red").startswith("b.json: garage.red.wheels.0.spoks: unknown")
    assert mistake({"wheels": []}, "garage.red").startswith("b.json: garage.red: wheels are none")


def test_a_long_value_is_cut() -> None:
    assert len(mistake({"wheels": "w" * 10_000})) < 400
