"""Mutations of the bytes of a file: flipped bits, cuts, splices, and false lengths."""

from collections.abc import Callable
from random import Random

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
HEAD = 256  # bytes in which most formats keep their lengths


def flip(data: bytearray, random: Random) -> bytearray:
    """Flip one to eight bits, half of the time near the start."""
    for _ in range(random.randint(1, 8)):
        end = min(len(data), HEAD) if random.random() < 0.5 else len(data)
        data[random.randrange(end)] ^= 1 << random.randrange(8)
    return data


def cut(data: bytearray, random: Random) -> bytearray:
    """Cut the end off, or a piece out of the middle."""
    start = random.randrange(len(data))
    stop = len(data) if random.random() < 0.5 else random.randint(start, min(len(data), start + 512))
    del data[start:stop]
    return data


def splice(data: bytearray, random: Random) -> bytearray:
    """Copy a piece over another place, or insert it there."""
    start = random.randrange(len(data))
    piece = data[start : start + random.randint(1, 256)]
    place = random.randrange(len(data))
    data[place : place + (len(piece) if random.random() < 0.5 else 0)] = piece
    return data


def lie(data: bytearray, random: Random) -> bytearray:
    """Overwrite an integer of one, two or four bytes with an extreme one, in either byte order."""
    width = random.choice((1, 2, 4))
    end = min(len(data), HEAD) if random.random() < 0.7 else len(data)
    place = random.randrange(max(end - width, 1))
    value = random.choice(EXTREMES) & ((1 << 8 * width) - 1)
    data[place : place + width] = value.to_bytes(width, random.choice(("big", "little")))
    return data


def insert(data: bytearray, random: Random) -> bytearray:
    """Insert random bytes."""
    place = random.randrange(len(data) + 1)
    data[place:place] = random.randbytes(random.randint(1, 64))
    return data


MUTATIONS: tuple[Callable[[bytearray, Random], bytearray], ...] = (flip, cut, splice, lie, insert)


def mutate(data: bytes, random: Random) -> bytes:
    """Return the data after one to three mutations. Empty data is not mutated."""
    result = bytearray(data)
    for _ in range(random.randint(1, 3)):
        if result:
            result = random.choice(MUTATIONS)(result, random)
    return bytes(result)
