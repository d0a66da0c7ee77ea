"""Clustering and its losses as the SwAV paper writes them, number by number, in plain Python."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def unit(vector):
    length = math.sqrt(dot(vector, vector))
    return [x / length for x in vector]


def sinkhorn_loop(scores, epsilon, num_iterations):
    """Codes of images (rows): columns to sum 1 / K, then rows to sum 1 / B; at last rows to 1."""
    num, num_prototypes = len(scores), len(scores[0])
    q = [[math.exp(score / epsilon) for score in row] for row in scores]
    for _ in range(num_iterations):
        for k in range(num_prototypes):
            total = sum(row[k] for row in q)
            for row in q:
                row[k] /= total * num_prototypes
        for row in q:
            total = sum(row)
            for k in range(num_prototypes):
                row[k] /= total * num
    return [[value * num for value in row] for row in q]


def log_softmax(logits):
    total = math.log(sum(math.exp(one) for one in logits))
    return [one - total for one in logits]


def swapped_loss_loop(scores, codes, temperature):
    """Equation 6 of SwAV as a mean; scores [view][image][prototype], codes of the full views."""
    losses = []
    for i, code in enumerate(codes):
        for v, view in enumerate(scores):
            if v == i:
                continue
            for q, s in zip(code, view, strict=True):
                log_p = log_softmax([one / temperature for one in s])
                losses.append(-dot(q, log_p))
    return sum(losses) / len(losses)


def cluster_loss_loop(embeddings, centroids, assignments, temperature):
    """Of embeddings [view][image], with centroids and clusters of images for each clustering."""
    losses = []
    for prototypes, clusters in zip(centroids, assignments, strict=True):
        for view in embeddings:
            for z, cluster in zip(view, clusters, strict=True):
                logits = [dot(z, c) / temperature for c in prototypes]
                losses.append(-log_softmax(logits)[cluster])
    return sum(losses) / len(losses)


def nearest(row, centroids):
    cosines = [dot(row, centroid) for centroid in centroids]
    return max(range(len(cosines)), key=cosines.__getitem__)


def kmeans_loop(rows, start, num_iterations):
    """Spherical k-means from given centroids; empty clusters move to the worst fitting images."""
    centroids = [list(rows[i]) for i in start]
    for _ in range(num_iterations):
        clusters = [nearest(row, centroids) for row in rows]
        fits = [dot(row, centroids[c]) for row, c in zip(rows, clusters, strict=True)]
        shared = [i for i in range(len(rows)) if clusters.count(clusters[i]) > 1]
        worst = sorted(shared, key=lambda i: fits[i])
        moved = []
        for k in range(len(centroids)):
            members = [row for row, c in zip(rows, clusters, strict=True) if c == k]
            moved.append(unit([sum(x) for x in zip(*members, strict=True)]) if members else None)
        for k, centroid in enumerate(moved):
            if centroid is None:
                moved[k] = list(rows[worst.pop(0)])
        centroids = moved
    return centroids, [nearest(row, centroids) for row in rows]
