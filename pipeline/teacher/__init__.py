"""The teacher: a frozen CLIP, its weights and its prompts."""
