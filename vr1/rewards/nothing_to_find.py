"""What an answer earns where no object is in the image, by every term that compares boxes."""

from vr1.records import Match


def reward_without_targets(match: Match) -> float:
    """1 for saying so in the right form, 0 for any box and for anything that cannot be read."""
    return float(match.num_predicted == 0 and match.detections.valid)
