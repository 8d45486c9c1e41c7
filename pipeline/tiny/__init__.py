"""The tiny CLIP: an open_clip model that knows the drawn world, and the script that trained it."""
