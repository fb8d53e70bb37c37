"""vr1: reinforcement learning that teaches vision-language models to find things in images (Vision-R1)."""

import logging

# On every start on a CPU it recommends a library that would fetch a kernel for 4-bit weights from the hub.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
