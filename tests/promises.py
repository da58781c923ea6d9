"""The promises of extraction, and the table of which promises held: `make faults`."""

PROMISES = {
    1: "an exception or Ctrl-C in mid-write leaves neither target nor temporary file",
    2: "kill -9 at random moments, then resume: byte-identical to an uninterrupted run",
    3: "a truncated or bit-flipped shard, or a damaged record, is noticed and redone",
    4: "a full disk: a clear error, earlier shards intact, resumes",
    5: "writers at the same time share the work; the claims of dead ones are taken over",
    6: "another model, weights, preprocessing, dtype or inputs: refused, the difference named",
    7: "a truncated JPEG or PNG is a row that says why, neighbours kept",
    8: "empty, text, missing, no permission, a folder named x.jpg",
    9: "a whole batch bad, a whole folder bad: the store is consistent",
    10: "a decompression bomb is refused before it is decoded",
    11: "EXIF orientations 1 to 8 equal the pre-rotated pixels",
    12: "every mode of pixels; 16 bits scaled and not clipped",
    13: "of several frames the first counts, and their number is recorded",
    14: "1 x 1, long and thin, sizes that the patch does not divide",
    15: "formats are on an allowlist",
    16: "any name that a file can have; links in circles; ../ in a list",
    17: "out of memory halves the batch, in order; at one image it raises",
    18: "a killed reading process: an error that names the cause, no hang",
    19: "Ctrl-C: exit code 130, complete shards are kept",
    20: "odd splits: each row exactly once",
    21: "batch size and workers change features by no more than 1e-5",
    22: "a NaN or Inf row is flagged",
    23: "a million paths: memory stays flat",
    24: "pickled weights are refused",
    25: "an archive's member that leads out of it is refused",
    26: "nothing is read with allow_pickle",
    27: "a plan that changes meanwhile: a slice keeps to its snapshot, and no row gets another image's features",
    28: "an open reader keeps its snapshot, whatever runs do meanwhile",
    29: "verify notices every flipped bit and every lost file, records included, and names it",
    30: "a duplicate survives its original; the features of a vanished image stay until prune --gone",
    31: "a source that was away comes back without options",
    32: "a changed image is redone alone; its neighbours keep their bytes",
    33: "every failed row says what would heal it",
    34: "one process, several, slices, a cluster: the same objects",
    35: "SIGTERM: the shard is dropped, its claim is given back, exit code 143",
    36: "prune removes what no kept snapshot needs, and nothing else",
}


def table(outcomes: dict[tuple[str, int], list[str]]) -> list[str]:
    """A line for each promise: the outcome of its tests on the disk and in a bucket, "passed", "failed" or "skipped".
    Promises about reading an image do not depend on the place, and are shown on the disk."""
    lines = [f"{'':>3}  {'disk':<9}  {'bucket':<9}"]
    for number, promise in PROMISES.items():
        cells, counts = [], []
        for place in ("disk", "bucket"):
            found = outcomes.get((place, number), [])
            held = "failed" not in found and "passed" in found
            cells.append("held" if held else "NOT SHOWN" if found or place == "disk" else "")
            counts += [f"{found.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in found]
        lines.append(f"{number:>3}  {cells[0]:<9}  {cells[1]:<9}  {promise} ({', '.join(counts) or 'no test ran'})")
    return lines
