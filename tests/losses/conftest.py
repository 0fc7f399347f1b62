from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# The table is read by several test files; tests are not packages, so it is imported here once under a name of its own.
_spec = importlib.util.spec_from_file_location("loss_contract", Path(__file__).with_name("contract.py"))
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
sys.modules["loss_contract"] = _module
_spec.loader.exec_module(_module)
