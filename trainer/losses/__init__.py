"""The losses: GLM (eq. 1-3), PLM (eq. 6-9), the pixel losses (eq. 9, 10, 12), and their sum (eq. 11)."""
