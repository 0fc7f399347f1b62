"""Write forest.skops, an ensemble of trees fitted on the bundled digits: python make_teacher.py"""

from pathlib import Path

import numpy as np
import skops.io
from sklearn.ensemble import ExtraTreesClassifier

from potstill.data import load

train = load("digits").train  # the samples that potstill will train on; the others are for the verdict
pixels = train.fetch(np.arange(len(train))).numpy().reshape(len(train), -1) / np.float32(255)
names = np.array(load("digits").classes)
forest = ExtraTreesClassifier(100, min_samples_leaf=2, random_state=0).fit(pixels, names[train.targets])
skops.io.dump(forest, Path(__file__).with_name("forest.skops"))
