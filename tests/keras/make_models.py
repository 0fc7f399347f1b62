"""Runs in the environment of Keras: trains and saves models, loads each as the worker does, says what it found.

python make_models.py keras_files.py FOLDER        with FOLDER/digits.npz: images (n, 8, 8), labels (n,)
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

import keras

OWN_LAYER = """
import keras
import numpy as np

@keras.saving.register_keras_serializable("test")
class Halve(keras.layers.Layer):
    def call(self, inputs):
        return keras.ops.multiply(inputs, np.float32(0.5))
"""


def trained(script: str, folder: Path) -> None:
    """Train the example's teacher, save it in all three formats, and what it says of the test images."""
    os.chdir(folder)
    model = runpy.run_path(script)["model"]
    assert (folder / "digits.keras").is_file()
    model.save(folder / "digits.h5")
    model.export(folder / "digits_saved", verbose=False)
    images = np.moveaxis(np.load(folder / "test.npz")["image"], 1, 3).astype(np.float32) / 255
    np.save(folder / "predicted.npy", model.predict(images, verbose=0))


def odd_ones(folder: Path) -> None:
    """Save models that are special in one way each."""
    images = keras.Input((8, 8, 1), name="pixels")
    features = keras.layers.Dense(4, name="features")(keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(images)))
    answer = keras.layers.Activation("softmax", name="answer")(keras.layers.Dense(3)(features))
    keras.Model(images, {"zebra": answer, "antelope": features}).save(folder / "named_outputs.keras")
    keras.Model(images, [features, answer]).save(folder / "listed_outputs.keras")
    inner = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
    keras.Sequential([images, keras.layers.Rescaling(1 / 255), inner]).save(folder / "nested.keras")
    other = keras.Input((2,), name="other")
    both = keras.layers.Concatenate()([keras.layers.Flatten()(images), other])
    keras.Model([images, other], keras.layers.Dense(2)(both)).save(folder / "two_inputs.keras")
    tokens = keras.Input((5,), dtype="int32")
    words = keras.layers.GlobalAveragePooling1D()(keras.layers.Embedding(7, 3)(tokens))
    keras.Model(tokens, keras.layers.Dense(1, activation="sigmoid")(words)).save(folder / "tokens.keras")
    (folder / "layers.py").write_text(OWN_LAYER)
    halve: Any = runpy.run_path(str(folder / "layers.py"))["Halve"]
    keras.Sequential([keras.Input((3,)), halve(), keras.layers.Softmax()]).save(folder / "own_layer.keras")
    unsafe = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda values: values * 2)])
    unsafe.save(folder / "lambda.keras")
    unsafe.save(folder / "lambda.h5")
    four = tf.Module()
    signature = tf.TensorSpec((4, 2), tf.float32, name="columns")
    four.sums = tf.function(lambda columns: {"sums": tf.sigmoid(tf.reduce_sum(columns, 1))}, [signature])
    four.means = tf.function(lambda columns: {"means": tf.reduce_mean(columns, 1)}, [signature])
    signatures = {"sums": four.sums, "means": four.means}
    tf.saved_model.save(four, str(folder / "fixed_batch"), signatures=signatures)
    (folder / "broken.keras").write_bytes(b"not a model")


ODD: dict[str, tuple[str, dict[str, Any], np.ndarray]] = {
    "named_outputs": ("named_outputs.keras", {}, np.ones((2, 8, 8, 1), np.float32)),
    "listed_outputs": ("listed_outputs.keras", {}, np.ones((2, 8, 8, 1), np.float32)),
    "nested": ("nested.keras", {}, np.ones((2, 8, 8, 1), np.float32)),
    "two_inputs": ("two_inputs.keras", {}, np.ones((2, 8, 8, 1), np.float32)),
    "tokens": ("tokens.keras", {}, np.arange(10, dtype=np.int32).reshape(2, 5) % 7),
    "own_layer": ("own_layer.keras", {"code": "layers.py"}, np.log([[1.0, 4.0, 25.0]]).astype(np.float32)),
    "own_layer_unknown": ("own_layer.keras", {}, np.ones((1, 3), np.float32)),
    "lambda": ("lambda.keras", {}, np.ones((1, 3), np.float32)),
    "lambda_h5": ("lambda.h5", {}, np.ones((1, 3), np.float32)),
    "lambda_allowed": ("lambda.keras", {"unsafe": True}, np.ones((1, 3), np.float32)),
    "signature_unsaid": ("fixed_batch", {}, np.ones((1, 2), np.float32)),
    "fixed_batch": ("fixed_batch", {"signature": "sums"}, np.arange(12, dtype=np.float32).reshape(6, 2) / 10),
    "mean": ("fixed_batch", {"signature": "means"}, np.arange(8, dtype=np.float32).reshape(4, 2)),
    "broken": ("broken.keras", {}, np.ones((1, 3), np.float32)),
}


def found(load: Any, folder: Path) -> dict[str, Any]:
    """Return facts and answers of each, or why it is refused, the unknown layer before the known one."""
    told: dict[str, Any] = {}
    for name in sorted(ODD, key=lambda name: name == "own_layer"):
        file, options, inputs = ODD[name]
        options = {**options, "path": str(folder / file)}
        if "code" in options:
            options["code"] = str(folder / options["code"])
        keras.saving.get_custom_objects().clear()
        try:
            facts, ask = load(options)
            answers = {key: np.asarray(values).tolist() for key, values in ask(inputs).items()}
            told[name] = {"facts": facts, "answers": answers}
        except Exception as error:
            told[name] = {"error": f"{type(error).__name__}: {error}"}
    return told


if __name__ == "__main__":
    place = Path(sys.argv[3])
    trained(sys.argv[2], place)
    odd_ones(place)
    (place / "found.json").write_text(json.dumps(found(runpy.run_path(sys.argv[1])["load"], place)))
