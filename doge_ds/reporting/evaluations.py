"""Few-shot accuracies and comparisons of models, as eval/run.py leaves them, into tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from doge_ds.reporting.cells import NOTHING, Cell, Row, Table, interval, number, signed
from doge_ds.reporting.run_files import Number, RunRecord, validate_file


class ComparedNumber(BaseModel):
    """One row of comparison.json."""

    model_config = ConfigDict(frozen=True)

    measure: str
    of: str
    model: str
    value: Number
    difference: Number = None
    low: Number = None
    high: Number = None
    exceeds_noise: bool | None = None


class Comparison(BaseModel):
    """comparison.json, as eval/run.py writes it for several models."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1]
    models: list[str] = Field(min_length=2)
    rows: list[ComparedNumber] = Field(min_length=1)

    @model_validator(mode="after")
    def _has_every_model_of_a_measure_at_each_place(self) -> Self:
        for measure in {row.measure for row in self.rows}:
            found = {(row.of, row.model) for row in self.rows if row.measure == measure}
            places, models = ({pair[part] for pair in found} for part in (0, 1))
            if not models <= set(self.models):
                raise ValueError(f"{measure} of a model that is not in models")
            if len(found) < len(places) * len(models):
                raise ValueError(f"{measure} of some models only")
        return self


def read_comparison(file: Path) -> Comparison:
    """Raises ConfigError where it cannot be read, RunError where it is no comparison (the key)."""
    return validate_file(Comparison, file)


def task_table(bases: Sequence[RunRecord]) -> Table | None:
    """Few-shot accuracies side by side with their standard errors; None where none was measured."""
    measured = [(run, run.results) for run in bases if run.results and run.results.tasks]
    if not measured:
        return None
    names = list(dict.fromkeys(name for _, results in measured for name in results.tasks or {}))
    rows = []
    for name in names:
        found = [(results.tasks or {}).get(name) for _, results in measured]
        cells = [
            Cell(f"{number(task.acc, 4)} ± {number(task.acc_stderr, 4)}" if task and task.acc is not None else NOTHING)
            for task in found
        ]
        rows.append(Row(name, cells))
    means = [Cell(number(results.mean_accuracy, 4)) for _, results in measured]
    roots = dict.fromkeys(asked.data_root for _, results in measured if (asked := results.few_shot) and asked.data_root)
    caption = "Few-shot accuracy with its standard error; higher is better"
    if roots:
        caption += f"; datasets of {', '.join(roots)}"
    return Table(caption, "task", [run.name for run, _ in measured], [*rows, Row("mean", means, is_summary=True)])


def comparison_tables(comparison: Comparison) -> list[Table]:
    """A table for each measure: the models side by side, with differences to the first and their intervals."""
    tables = []
    for measure in dict.fromkeys(row.measure for row in comparison.rows):
        cells = {(row.of, row.model): row for row in comparison.rows if row.measure == measure}
        first, *others = [model for model in comparison.models if any(model == key[1] for key in cells)]
        columns = [first]
        for model in others:
            columns += [model, f"difference to {first}", "95% interval"]
        rows = []
        for place in dict.fromkeys(key[0] for key in cells):
            line = [Cell(number(cells[place, first].value, 4))]
            for model in others:
                line += _compared(cells[place, model])
            rows.append(Row(place, line, is_summary=place == "average"))
        caption = f"{measure.capitalize()}; differences that exceed the noise of the text measured on are bold"
        tables.append(Table(caption, "task" if measure == "accuracy" else "domain", columns, rows))
    return tables


def _compared(row: ComparedNumber) -> list[Cell]:
    if row.difference is None:
        return [Cell(number(row.value, 4)), Cell(NOTHING), Cell(NOTHING)]
    return [
        Cell(number(row.value, 4)),
        Cell(signed(row.difference, 4), strong=bool(row.exceeds_noise)),
        Cell(interval(row.low, row.high, 4)),
    ]
