"""What changed between two descriptions of a store, in words."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from potstill.store.manifest import Manifest, SignalSpec


def differences(recorded: Manifest, wanted: Manifest, *, exact: bool = False) -> list[str]:
    """Return, in words, why a store described by ``recorded`` cannot serve ``wanted``; empty when it can.

    A store with more signals or more views than wanted serves, unless ``exact`` is set, as it is to continue an
    unfinished recording. The potstill version and the size of blocks do not matter.
    """
    old, new = _facts(recorded), _facts(wanted)
    lines = [
        f"{name}: recorded {_show(old.get(name))}, now {_show(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if wanted.sampling_seed is not None and recorded.sampling_seed != wanted.sampling_seed:
        lines.append(f"sampling seed: recorded {_show(recorded.sampling_seed)}, now {_show(wanted.sampling_seed)}")
    if recorded.views < wanted.views or (exact and recorded.views != wanted.views):
        lines.append(f"views: recorded {recorded.views}, now {wanted.views}")
    for name, spec in wanted.signals.items():
        kept = recorded.signals.get(name)
        if kept is None:
            lines.append(f"signal '{name}': not recorded, only {', '.join(sorted(recorded.signals))}")
            continue
        old, new = _signal_facts(kept), _signal_facts(spec)
        if exact:
            old["converted from"], new["converted from"] = kept.converted_from, spec.converted_from
        lines += [
            f"signal '{name}' {part}: recorded {_show(old.get(part))}, now {_show(new.get(part))}"
            for part in dict.fromkeys([*old, *new])
            if old.get(part) != new.get(part)
        ]
    if exact:
        lines += [f"signal '{name}': recorded, now none" for name in recorded.signals if name not in wanted.signals]
    return lines


def _facts(manifest: Manifest) -> dict[str, Any]:
    facts = _flat("teacher", dict(manifest.teacher))
    facts |= {"data": manifest.data, "sample ids": manifest.ids, "number of samples": manifest.num_samples}
    facts |= _flat("augmentation", dict(manifest.augmentation))
    return facts


def _signal_facts(spec: SignalSpec) -> dict[str, Any]:
    facts = {"shape": list(spec.shape), "per": spec.per, "source": spec.source, **spec.codec.to_json()}
    return facts if spec.head is None else {**facts, "classes": spec.head.classes}


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, part in value.items():
        flat |= _flat(f"{prefix} {key}", part)
    return flat


def _show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str):
        return f"{value[:8]}…" if re.fullmatch(r"[0-9a-f]{16,}", value) else value
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
