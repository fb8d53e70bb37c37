"""Checkpoints: exact resume, atomic files, shards, and export as a Hugging Face folder."""
