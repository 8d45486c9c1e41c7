"""Annotations that label tools export (labelme, COCO, CVAT, color-coded PNGs), converted to label maps."""
