"""Whether reading a text takes time in proportion to its length."""

import time


def takes_linear_time(read, text_of, length, constant):
    """Whether 16 times the text takes less than 48 times as long; quadratic time would be 256 times as long.

    Args:
        read: reads a text.
        text_of: makes a text of a length.
        length: of the short text.
        constant: seconds that cover what is too short to time.

    Other jobs of the machine make a reading longer and never shorter. So the shortest of three counts for the short
    text, and one of three that is fast enough for the long one.
    """

    def seconds(text):
        began = time.process_time()
        read(text)
        return time.process_time() - began

    short, long = text_of(length), text_of(16 * length)
    limit = 48 * min(seconds(short) for _ in range(3)) + constant
    return any(seconds(long) < limit for _ in range(3))
