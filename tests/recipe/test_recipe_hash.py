"""The hash tells recipes apart by their values and by nothing else."""

from __future__ import annotations

import hashlib
import json

from potstill.recipe.hash import recipe_hash
from potstill.recipe.yaml import dump, loads

TEXT = "data: {train: digits}\nteacher: {model: cnn, train: {epochs: 3}}\nstudent: {model: cnn, args: {b: 1, a: 2}}\n"


def test_it_is_the_sha256_of_the_values_in_key_order() -> None:
    values = json.loads(loads(TEXT).model_dump_json())
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert recipe_hash(loads(TEXT)) == hashlib.sha256(text.encode()).hexdigest()[:12]


def test_comments_order_and_written_defaults_do_not_matter() -> None:
    same = "# comment\nstudent: {args: {a: 2, b: 1}, model: cnn}\n" + "".join(
        line + "\n" for line in TEXT.splitlines()[:2]
    )
    assert recipe_hash(loads(same)) == recipe_hash(loads(TEXT))
    assert recipe_hash(loads(TEXT + "training: {epochs: 30}\n")) == recipe_hash(loads(TEXT))
    assert recipe_hash(loads(dump(loads(TEXT)))) == recipe_hash(loads(TEXT))


def test_every_value_matters() -> None:
    changes = ["seed=1", "training.learning_rate=0.01", "student.args.a=3", "data.train=x", "objective=kd",
               "teacher.train.epochs=4", "store.dtype=float32", "budget.minutes=1"]  # fmt: skip
    hashes = {recipe_hash(loads(TEXT, overrides=[change])) for change in changes} | {recipe_hash(loads(TEXT))}
    assert len(hashes) == len(changes) + 1
