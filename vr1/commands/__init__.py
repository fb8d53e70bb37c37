"""The commands of ``python -m vr1``, a module or folder each; `vr1.cli` finds them."""
