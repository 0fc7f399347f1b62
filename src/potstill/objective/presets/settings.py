"""What the settings of presets were made for, and those that the references change with the number of classes."""

from __future__ import annotations

from typing import Any

MANY_CLASSES = 1000
"""From this number of classes on, the references' settings for ImageNet are taken."""
_CIFAR = "CIFAR-100, 50,000 images, batches of 64, SGD 0.05 with momentum, 240 epochs"
_IMAGENET = "ImageNet, 1.28 million images, batches of 256 to 512, SGD 0.1 to 0.2, 100 epochs"
_GLUE = "BERT on GLUE, AdamW 2e-5 to 5e-5, 3 to 10 epochs"
_REPRESENTATIONS = f"{_CIFAR}, ResNets, wide ResNets and VGG (arXiv:1910.10699)"

MADE_FOR: dict[str, str] = {
    "auto": _REPRESENTATIONS,
    "kd": _REPRESENTATIONS,
    "kd_standardised": f"{_CIFAR}, on top of the settings of kd (arXiv:2403.01427)",
    "dkd": f"{_CIFAR}, ResNet-56 into ResNet-20; the reference takes non_target_weight 6 for WRN-40-2 and VGG-13, "
    "8 for ResNet-32x4, whose teachers are further ahead",
    "nkd": f"{_IMAGENET}, ResNet-34 into ResNet-18",
    "dist": f"{_CIFAR}, ResNets",
    "wsld": f"{_IMAGENET}, ResNet-34 into ResNet-18",
    "mlkd": f"{_CIFAR}, two views of each image",
    "fitnets": _REPRESENTATIONS,
    "at": _REPRESENTATIONS,
    "nst": _REPRESENTATIONS,
    "fsp": _REPRESENTATIONS,
    "vid": _REPRESENTATIONS,
    "ab": _REPRESENTATIONS,
    "ft": _REPRESENTATIONS,
    "sp": _REPRESENTATIONS,
    "rkd": _REPRESENTATIONS,
    "pkt": _REPRESENTATIONS,
    "cc": _REPRESENTATIONS,
    "crd": f"{_REPRESENTATIONS}, there with a memory of 16,384 negatives; here with those of the batch",
    "crd_bank": f"{_REPRESENTATIONS}, 16,384 negatives",
    "ofd": f"{_CIFAR}, wide ResNets",
    "reviewkd": f"{_CIFAR}, ResNets; the reference takes weights of 0.6 to 8 from pair to pair",
    "simkd": f"{_CIFAR}, ResNet-32x4 into ResNet-8x4",
    "mgd": f"{_IMAGENET}, ResNet-34 into ResNet-18, maps of 512 x 7 x 7",
    "cwd": "dense prediction, Cityscapes and COCO",
    "tinybert": _GLUE,
    "pkd": _GLUE,
    "distilbert": "pre-training of DistilBERT, AdamW 5e-4",
    "minilm": "pre-training of MiniLM, AdamW 4e-4 to 6e-4",
}
"""Data, models and learning rate that the references tuned a preset's settings on; absent where settings are ours."""


def at_hand(name: str, num_classes: int) -> dict[str, Any]:
    """Return the options whose reference value is another one for so many classes; empty where none is.

    Args:
        name: of the preset.
        num_classes: of the data.

    """
    if num_classes < MANY_CLASSES:
        return {}
    if name == "dkd":
        return {"temperature": 1.0, "non_target_weight": 0.5}
    return {"temperature": 1.0} if name == "dist" else {}
