"""Students: segmentation-models-pytorch networks, and SegNeXt."""
