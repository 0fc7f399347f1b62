"""torchdistill's side of `cached_epoch.py`: runs in its own environment and times an epoch for each line it reads.

The models are potstill's own modules, so that both sides compute the same. The loop is that of torchdistill's example
(examples/torchvision/image_classification.py), the configuration its sample for CIFAR-10, without progress logging.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import types
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

# torchvision may be built for another torch and then looks for operators that its compiled half would have brought.
_DECLARED = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _DECLARED.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

# The zoo needs torch alone; potstill's other packages are not installed here and are passed by.
_SOURCE = Path(__file__).resolve().parents[1] / "src"
for _name in ("potstill", "potstill.models", "potstill.models.zoo"):
    _package = types.ModuleType(_name)
    _package.__path__ = [str(_SOURCE / _name.replace(".", "/"))]
    sys.modules[_name] = _package

from torch.utils.data import Dataset, RandomSampler, TensorDataset  # noqa: E402
from torchdistill.core.distillation import get_distillation_box  # noqa: E402
from torchvision import transforms  # noqa: E402

from potstill.models.zoo.resnet import resnet20, resnet56  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WHERE = {
    "student_module_path": ".", "student_module_io": "output",
    "teacher_module_path": ".", "teacher_module_io": "output",
}  # fmt: skip


class Pictures(Dataset):  # type: ignore[type-arg]
    """Images with crop and flip, through Pillow as torchvision's CIFAR10 gives them."""

    def __init__(self, images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels.tolist()
        change = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose([*change, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.picture = transforms.ToPILImage()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self.picture(self.images[index])), self.labels[index]


def configuration(batch: int, epochs: int) -> dict[str, Any]:
    """Return the sample's knowledge distillation with the batch, optimiser and weights of potstill's side."""

    def loader(name: str) -> dict[str, Any]:
        sampler = {"class_or_func": RandomSampler, "kwargs": {}}
        return {"dataset_id": name, "sampler": sampler, "kwargs": {"batch_size": batch, "num_workers": 0}}

    kd = {"key": "KDLoss", "kwargs": {**WHERE, "temperature": 4.0, "alpha": 0.5, "reduction": "batchmean"}}
    side: dict[str, Any] = {"forward_proc": "forward_batch_only", "sequential": [], "frozen_modules": []}
    return {
        "num_epochs": epochs,
        "train_data_loader": loader("train"),
        "val_data_loader": loader("train"),
        "teacher": {**side, "requires_grad": False},
        "student": {**side, "requires_grad": True},
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}},
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": {"criterion": kd, "weight": 1.0}}}},
    }


def main() -> None:
    logging.disable(logging.CRITICAL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed goes to standard error
    torch.set_num_threads(1)
    path, batch = sys.argv[1], int(sys.argv[2])
    packed = np.load(path)
    images, labels = packed["images"], packed["labels"]
    pixels = (torch.from_numpy(images).float() / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
        :, None, None
    ]
    datasets = {"pictures": Pictures(images, labels), "tensors": TensorDataset(pixels, torch.from_numpy(labels))}
    teacher = resnet56()
    state = torch.load(os.environ["TEACHER_WEIGHTS"], weights_only=True)
    teacher.load_state_dict(state)
    boxes = {
        name: get_distillation_box(
            teacher, resnet20(), {"train": data}, configuration(batch, 1000), torch.device("cpu"), None, False, 1
        )
        for name, data in datasets.items()
    }
    epochs = dict.fromkeys(boxes, 0)
    print(json.dumps({"version": version("torchdistill"), "torch": torch.__version__}), file=answers, flush=True)
    for line in sys.stdin:
        box = boxes[line.strip()]
        begin = time.perf_counter(), time.process_time()
        box.pre_epoch_process(epoch=epochs[line.strip()])
        for inputs, targets, extra in box.train_data_loader:
            box.post_forward_process(loss=box.forward_process(inputs, targets, extra))
        box.post_epoch_process()
        epochs[line.strip()] += 1
        seconds = {"wall": time.perf_counter() - begin[0], "processor": time.process_time() - begin[1]}
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
