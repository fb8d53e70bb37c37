"""vr1: reinforcement learning that teaches vision-language models to find things in images (Vision-R1)."""
