"""Comparisons of two things that are measured in turn."""

import random
import statistics


def with_interval(samples, of):
    """A figure of the samples, with its 95 % interval, as text."""
    draw = random.Random(0)
    resampled = sorted(of(draw.choices(samples, k=len(samples))) for _ in range(4000))
    return f"{of(samples):.4f} ({resampled[100]:.4f} to {resampled[3899]:.4f})"


def ratio_of_medians(pairs):
    return statistics.median(a for a, _ in pairs) / statistics.median(b for _, b in pairs)


def in_turn(repeat, first, second):
    pairs = []
    for turn in range(repeat):
        if turn % 2 == 0:
            a = first()
            pairs.append((a, second()))
        else:
            b = second()
            pairs.append((first(), b))
    return pairs
