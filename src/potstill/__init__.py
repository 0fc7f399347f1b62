"""potstill: from a trained model, some data and a limit to a small model that is proven and exported.

The front door. Every name is loaded when it is first used, so ``import potstill`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from potstill import losses as losses
    from potstill.core.errors import DataError as DataError
    from potstill.core.errors import ParityError as ParityError
    from potstill.core.errors import PotstillError as PotstillError
    from potstill.core.errors import TeacherError as TeacherError
    from potstill.core.errors import TrainingError as TrainingError
    from potstill.core.errors import UsageError as UsageError
    from potstill.core.signals import Batch as Batch
    from potstill.data import Data as Data
    from potstill.data import Samples as Samples
    from potstill.data.load import load as load_data
    from potstill.export import OnnxModel as OnnxModel
    from potstill.export import load_student as load_student
    from potstill.models import Preprocessor as Preprocessor
    from potstill.models import tap as tap
    from potstill.models import zoo as zoo
    from potstill.objective import Objective as Objective
    from potstill.objective import Schedule as Schedule
    from potstill.objective import Term as Term
    from potstill.objective import preset as preset
    from potstill.pipeline import Plan as Plan
    from potstill.pipeline import Run as Run
    from potstill.pipeline import distill as distill
    from potstill.pipeline import find_runs as find_runs
    from potstill.pipeline import plan as plan
    from potstill.pipeline import run as run
    from potstill.recipe.schema import Recipe as Recipe
    from potstill.recipe.yaml import read as read_recipe
    from potstill.store import open_store as open_store
    from potstill.teachers import LiveTeacher as LiveTeacher
    from potstill.teachers import StoredTeacher as StoredTeacher

_HOMES = {
    "Batch": "core.signals",
    "Data": "data",
    "DataError": "core.errors",
    "LiveTeacher": "teachers",
    "Objective": "objective",
    "OnnxModel": "export",
    "ParityError": "core.errors",
    "Plan": "pipeline",
    "PotstillError": "core.errors",
    "Preprocessor": "models",
    "Recipe": "recipe.schema",
    "Run": "pipeline",
    "Samples": "data",
    "Schedule": "objective",
    "StoredTeacher": "teachers",
    "TeacherError": "core.errors",
    "Term": "objective",
    "TrainingError": "core.errors",
    "UsageError": "core.errors",
    "distill": "pipeline",
    "find_runs": "pipeline",
    "load_data": "data:load",
    "load_student": "export",
    "losses": "losses:",
    "open_store": "store",
    "plan": "pipeline",
    "preset": "objective",
    "read_recipe": "recipe.yaml:read",
    "run": "pipeline",
    "tap": "models",
    "zoo": "models.zoo:",
}
__version__ = "0.1.0"
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    """Load a public name from the room it lives in."""
    if name not in _HOMES:
        raise AttributeError(f"module 'potstill' has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    loaded = import_module(f"potstill.{module}")
    value = loaded if _HOMES[name].endswith(":") else getattr(loaded, attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
