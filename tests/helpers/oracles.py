"""The losses written out from the paper (eq. 1-3, 6-10, 12) and NEL's formulas: numpy, float64, one pixel at a time."""

import numpy as np

from trainer.config import TrainConfig

FOCAL_WEIGHT, DICE_WEIGHT = 100.0, 1.0
EMPTY = -1


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def draw_targets(seed: int, batch: int, size: tuple[int, int], seen: int, pseudo: int, void: float = 0.2) -> np.ndarray:
    """Random label maps: seen classes, pseudo labels and unlabelled pixels."""
    rng = np.random.default_rng(seed)
    target = rng.integers(0, seen + pseudo, (batch, *size))
    target[rng.random(target.shape) < void] = -1
    return target


def labels_present(target: np.ndarray, seen: int) -> np.ndarray:
    """Which labels occur in each label map: images x labels, of which at least the seen classes have a column."""
    columns = range(max(seen, target.max() + 1))
    return np.array([[bool((one == label).any()) for label in columns] for one in target])


def pixel_prototypes(features: np.ndarray, target: np.ndarray, seen: int) -> dict[tuple[int, int], np.ndarray]:
    """Mean of R at the pixels of each label, by (owner, label): owner is the image, or -1 for a seen class."""
    collected: dict[tuple[int, int], list[np.ndarray]] = {}
    grid, size = features.shape[2:], target.shape[1:]
    for b in range(len(target)):
        for y in range(size[0]):
            for x in range(size[1]):
                label = int(target[b, y, x])
                if label < 0:
                    continue
                cell = features[b, :, y * grid[0] // size[0], x * grid[1] // size[1]]
                collected.setdefault((-1 if label < seen else b, label), []).append(cell)
    return {key: np.mean(cells, axis=0) for key, cells in sorted(collected.items())}


def bilinear(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample the last two axes with half-pixel centers and clamped borders (align_corners=False)."""
    result = np.zeros((*grid.shape[:-2], *size))
    height, width = grid.shape[-2:]
    for y in range(size[0]):
        for x in range(size[1]):
            row = max((y + 0.5) * height / size[0] - 0.5, 0.0)
            column = max((x + 0.5) * width / size[1] - 0.5, 0.0)
            top, left = int(row), int(column)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            v, u = row - top, column - left
            upper = (1 - u) * grid[..., top, left] + u * grid[..., top, right]
            lower = (1 - u) * grid[..., below, left] + u * grid[..., below, right]
            result[..., y, x] = (1 - v) * upper + v * lower
    return result


def cell_logits(cells: np.ndarray, rows: np.ndarray, kind: str, tau: float) -> np.ndarray:
    """Eq. 9 at each cell: rows are L2-normalized here, the cells only for `cosine`."""
    result = np.zeros((len(rows), *cells.shape[1:]))
    for y in range(cells.shape[1]):
        for x in range(cells.shape[2]):
            for r, row in enumerate(unit(rows)):
                cell = cells[:, y, x]
                result[r, y, x] = row @ cell if kind == "dot" else row @ unit(cell) / tau
    return result


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def focal_and_dice(logits: list[np.ndarray], targets: list[np.ndarray], seen: int, ignore: str) -> tuple[float, float]:
    """NEL of a batch: each entry of `logits` is seen x height x width. Unweighted, divided by N."""
    pairs = sum(len({int(label) for label in target.flat if 0 <= label < seen}) for target in targets)
    focal = dice = 0.0
    for z, target in zip(logits, targets, strict=True):
        has_seen = (target >= 0) & (target < seen)
        keep = has_seen if ignore == "masked" else np.ones_like(has_seen)
        for k in range(seen):
            values, overlap, area, truth = [], 0.0, 0.0, 0.0
            for probability, hit in zip(sigmoid(z[k])[keep], (target == k)[keep], strict=True):
                right = probability if hit else 1 - probability
                values.append((0.25 if hit else 0.75) * (1 - right) ** 2 * -np.log(right))
                overlap, area, truth = overlap + probability * hit, area + probability, truth + hit
            focal += np.mean(values) if values else 0.0
            if (target == k).any():
                dice += 1 - (2 * overlap + 1) / (area + truth + 1)
    return focal / max(1, pairs), dice / max(1, pairs)


def cross_entropy(logits: list[np.ndarray], columns: list[np.ndarray]) -> float:
    """Mean over all labelled pixels of the batch; `columns` holds the right row of each pixel, or -1."""
    losses = []
    for z, column in zip(logits, columns, strict=True):
        for y, x in np.argwhere(column >= 0):
            scores = z[:, y, x]
            losses.append(np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[column[y, x]])
    return float(np.sum(losses) / max(1, len(losses)))


def numpy_pixel_terms(config: TrainConfig, features, text, target) -> dict[str, float]:
    """CE, focal, dice and generate loss with the identity adapter, written out from the formulas."""
    seen = len(text)
    rows = pixel_prototypes(features, target, seen)
    step = config.loss_stride
    logits, columns, targets = [], [], []
    for b, cells in enumerate(features):
        owners = range(len(target)) if config.pseudo_scope == "batch" else [b]
        keys = [key for key in rows if key[0] in owners]
        classifier = np.concatenate([text, np.array([rows[key] for key in keys]).reshape(-1, text.shape[1])])
        sampled = target[b][step // 2 :: step, step // 2 :: step]
        targets.append(sampled)
        logits.append(bilinear(cell_logits(cells, classifier, config.logits, config.tau), sampled.shape))
        row_of = {key[1]: seen + n for n, key in enumerate(keys) if key[0] == b} | {k: k for k in range(-1, seen)}
        columns.append(np.array([row_of[int(label)] for label in sampled.flat]).reshape(sampled.shape))
    focal, dice = focal_and_dice([z[:seen] for z in logits], targets, seen, config.nel_ignore)
    distances = [((unit(row) - text[k]) ** 2).sum() for (owner, k), row in rows.items() if owner < 0]
    return {
        "ce": cross_entropy(logits, columns),
        "focal": focal,
        "dice": dice,
        "generate": float(np.mean(distances)) if distances else 0.0,
    }


def numpy_attention(cls: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Eq. 1."""
    batch, channels = cls.shape
    cells = features.reshape(batch, channels, -1)
    weights = np.zeros((batch, cells.shape[2]))
    for b in range(batch):
        scores = np.array([cls[b] @ cells[b, :, cell] for cell in range(cells.shape[2])]) / np.sqrt(channels)
        weights[b] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    return weights


def numpy_info_nce(pooled, cls, image, bank_cls, bank_image, tau) -> float:
    """Eq. 3 with its logarithm: entries of the same image and empty entries are not negatives."""

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    losses = []
    for i in range(len(pooled)):
        positive = np.exp(cosine(pooled[i], cls[i]) / tau)
        negative = 0.0
        for s, owner in [*zip(cls, image, strict=True), *zip(bank_cls, bank_image, strict=True)]:
            if owner not in (EMPTY, image[i]):
                negative += np.exp(cosine(pooled[i], s) / tau)
        losses.append(-np.log(positive / (positive + negative)))
    return float(np.mean(losses))
