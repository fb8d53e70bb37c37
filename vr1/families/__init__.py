"""Model families: how each asks for boxes and writes them."""

from vr1.families.base import Family
from vr1.families.qwen2_5_vl import Qwen25VL

__all__ = ["Family", "Qwen25VL"]
