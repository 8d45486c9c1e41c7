"""The tiny CLIP: an open_clip model of the synthetic scenes, and the script that trained it."""
