"""Checkpoints: what they store for exact resume (`state`), files, folders of shards, and export to Hugging Face."""
