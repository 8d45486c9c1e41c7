"""The paper's clustering and fusion written out in float64, as a reference for tests.

Nothing here calls the code under test. Sources: eq. 4-5 and Algorithm 1 as interpreted in docs/decisions/method.md.
"""

import numpy as np


def unit(vectors):
    vectors = np.asarray(vectors, np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def window_means(dense, ignored, window):
    tokens, means = unit(dense), []
    for top in range(0, ignored.shape[0], window):
        for left in range(0, ignored.shape[1], window):
            inside = [
                tokens[y, x]
                for y in range(top, min(top + window, ignored.shape[0]))
                for x in range(left, min(left + window, ignored.shape[1]))
                if ignored[y, x]
            ]
            if inside:
                means.append(unit(sum(inside) / len(inside)))
    return np.array(means)


def nearest(points, centers):
    labels = []
    for point in points:
        best = 0
        for index in range(1, len(centers)):
            if point @ centers[index] > point @ centers[best]:
                best = index
        labels.append(best)
    return np.array(labels)


def lloyd(points, centers, updates=10):
    for _ in range(updates):
        labels = nearest(points, centers)
        occupied = [points[labels == index] for index in range(len(centers)) if (labels == index).any()]
        centers = np.array([unit(members.mean(axis=0)) for members in occupied])
    return centers, nearest(points, centers)


def clusters(dense, ignored, windows=(3, 7), updates=10):
    """Centers, masks and scales of all window sizes, stacked."""
    centers, masks, scales = [], [], []
    for scale, window in enumerate(windows):
        found, labels = lloyd(unit(dense)[ignored], window_means(dense, ignored, window), updates)
        for index, center in enumerate(found):
            mask = np.zeros(ignored.shape, bool)
            mask[ignored] = labels == index
            centers.append(center)
            masks.append(mask)
            scales.append(scale)
    return np.array(centers), np.array(masks), np.array(scales)


def groups(centers, threshold):
    """Algorithm 1 as its comment says: a selected center is not selected again."""
    centers, taken, found = unit(centers), set(), []
    for first in range(len(centers)):
        if first in taken:
            continue
        members = [first]
        for other in range(len(centers)):
            if other != first and other not in taken and centers[first] @ centers[other] > threshold:
                members.append(other)
        taken.update(members)
        found.append(sorted(members))
    return found


def literal_groups(centers, threshold):
    """Algorithm 1 as printed: each step retires only the row and the column of its seed."""
    similarity = unit(centers) @ unit(centers).T
    np.fill_diagonal(similarity, 1)
    found = []
    while similarity.max() > threshold:
        index = np.argwhere(similarity == similarity.max())[0][0]
        found.append(np.flatnonzero(similarity[index] > threshold).tolist())
        similarity[index, :] = similarity[:, index] = -100
    return found


def fused(centers, masks, scales, dense, threshold=0.8):
    """Labels by vote: most votes, then the more similar center, then the lower group; -1 where nothing votes."""
    group_of = {center: number for number, members in enumerate(groups(centers, threshold)) for center in members}
    tokens, centers, labels, names = unit(dense), unit(centers), np.full(masks.shape[1:], -1), {}
    for y, x in np.ndindex(*labels.shape):
        ballots = {}
        for scale in sorted(set(scales.tolist())):
            voters = [c for c in range(len(centers)) if scales[c] == scale and masks[c, y, x]]
            assert len(voters) <= 1
            for center in voters:
                ballots.setdefault(group_of[center], []).append(float(tokens[y, x] @ centers[center]))
        if ballots:
            winner = min(ballots, key=lambda group: (-len(ballots[group]), -max(ballots[group]), group))
            labels[y, x] = names.setdefault(winner, len(names))
    return labels


def ignored_tokens(label, unseen_ids, grid):
    """At least half of the patch is void (255) or of an unseen class."""
    height, width = label.shape[0] // grid[0], label.shape[1] // grid[1]
    result = np.zeros(grid, bool)
    for y, x in np.ndindex(*grid):
        patch = label[y * height : (y + 1) * height, x * width : (x + 1) * width]
        result[y, x] = 2 * sum(int(value) in {255, *unseen_ids} for value in patch.flat) >= patch.size
    return result
