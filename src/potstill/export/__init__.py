"""Writing the student to files that run elsewhere, checked against the model they came from."""

from __future__ import annotations

from potstill.export.card import write_card
from potstill.export.onnx import OnnxModel, export_onnx
from potstill.export.parity import Loss, Parity, parity, recommended
from potstill.export.quantize import grouped_convolutions, quantize
from potstill.export.student import Student
from potstill.export.weights import load_student, save_student

__all__ = [
    "Loss",
    "OnnxModel",
    "Parity",
    "Student",
    "export_onnx",
    "grouped_convolutions",
    "load_student",
    "parity",
    "quantize",
    "recommended",
    "save_student",
    "write_card",
]
