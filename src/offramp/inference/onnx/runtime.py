"""ONNX Runtime, without its telemetry.

Since 1.29 its packages for Linux and macOS send events on models and sessions to their maker, and keep a device
identifier in the user's cache folder, from the import on. The variable is read once, at the import; set to 0 it leaves
them on.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

__all__ = ["onnxruntime"]
