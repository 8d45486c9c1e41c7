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


def nearest(points, centres):
    labels = []
    for point in points:
        best = 0
        for index in range(1, len(centres)):
            if point @ centres[index] > point @ centres[best]:
                best = index
        labels.append(best)
    return np.array(labels)


def lloyd(points, centres, updates=10):
    for _ in range(updates):
        labels = nearest(points, centres)
        occupied = [points[labels == index] for index in range(len(centres)) if (labels == index).any()]
        centres = np.array([unit(members.mean(axis=0)) for members in occupied])
    return centres, nearest(points, centres)


def clusters(dense, ignored, windows=(3, 7), updates=10):
    """Centres, masks and scales of all window sizes, stacked."""
    centres, masks, scales = [], [], []
    for scale, window in enumerate(windows):
        found, labels = lloyd(unit(dense)[ignored], window_means(dense, ignored, window), updates)
        for index, centre in enumerate(found):
            mask = np.zeros(ignored.shape, bool)
            mask[ignored] = labels == index
            centres.append(centre)
            masks.append(mask)
            scales.append(scale)
    return np.array(centres), np.array(masks), np.array(scales)


def groups(centres, threshold):
    """Algorithm 1 as its comment says: a selected center is not selected again."""
    centres, taken, found = unit(centres), set(), []
    for first in range(len(centres)):
        if first in taken:
            continue
        members = [first]
        for other in range(len(centres)):
            if other != first and other not in taken and centres[first] @ centres[other] > threshold:
                members.append(other)
        taken.update(members)
        found.append(sorted(members))
    return found


def literal_groups(centres, threshold):
    """Algorithm 1 as printed: each step retires only the row and the column of its seed."""
    similarity = unit(centres) @ unit(centres).T
    np.fill_diagonal(similarity, 1)
    found = []
    while similarity.max() > threshold:
        index = np.argwhere(similarity == similarity.max())[0][0]
        found.append(np.flatnonzero(similarity[index] > threshold).tolist())
        similarity[index, :] = similarity[:, index] = -100
    return found


def fused(centres, masks, scales, dense, threshold=0.8):
    """Labels by vote: most votes, then the more similar center, then the lower group; -1 where nothing votes."""
    group_of = {centre: number for number, members in enumerate(groups(centres, threshold)) for centre in members}
    tokens, centres, labels, names = unit(dense), unit(centres), np.full(masks.shape[1:], -1), {}
    for y, x in np.ndindex(*labels.shape):
        ballots = {}
        for scale in sorted(set(scales.tolist())):
            voters = [c for c in range(len(centres)) if scales[c] == scale and masks[c, y, x]]
            assert len(voters) <= 1
            for centre in voters:
                ballots.setdefault(group_of[centre], []).append(float(tokens[y, x] @ centres[centre]))
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
