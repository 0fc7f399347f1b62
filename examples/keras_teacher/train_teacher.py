"""Trains the teacher with Keras: run it with the interpreter of an environment that has Keras.

python3 -m venv keras-env
keras-env/bin/pip install keras tensorflow scikit-learn
keras-env/bin/python train_teacher.py
"""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras

digits = load_digits()
images = np.round(digits.images[:, None] * (255 / 16)).astype(np.uint8)
train_x, test_x, train_y, test_y = train_test_split(
    images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)
# The student gets the same split: its teacher must not have seen the test images.
np.savez("train.npz", image=train_x, digit=train_y)
np.savez("test.npz", image=test_x, digit=test_y)

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((8, 8, 1), name="pixels"),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.3),
        keras.layers.Dense(10, activation="softmax", name="digit"),
    ]
)
model.compile(keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy", metrics=["accuracy"])
# potstill hands the teacher pixels from 0 to 1, so it is trained on these; Keras has the channel last.
train, test = (np.moveaxis(one, 1, 3).astype("float32") / 255 for one in (train_x, test_x))
model.fit(train, train_y, batch_size=64, epochs=8, verbose=0)
print("test accuracy", model.evaluate(test, test_y, verbose=0)[1])
model.save("digits.keras")
