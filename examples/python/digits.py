"""The whole main job from Python, in ten lines."""

import potstill

run = potstill.distill(
    teacher={"model": "cnn", "args": {"width": 32}, "train": {"epochs": 10, "batch_size": 64}},
    student={"model": "cnn", "args": {"width": 6}},
    data="digits",
    training={"epochs": 10, "batch_size": 64},
    out="runs/python-digits",
)
print(run.evaluation.verdict.headline)
print(run.exported["onnx"])
