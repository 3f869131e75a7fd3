"""What the grader and a process that runs a submission say to each other, of which both know the form in advance.

A request is a length (8 bytes), that many bytes of JSON, ``{"call": name, "files": {module: file}, "dtype": .., "shape":
..}``, and the argument's values. A response is a ``HEADER``, the number of dimensions and their sizes, and the result's
values in the type of the call; or -1, a length, and the reason of a failure in UTF-8.
"""

import struct

import numpy as np

MAX_DIMENSIONS = 8
HEADER = struct.Struct(f"<{1 + MAX_DIMENSIONS}q")
LENGTH = struct.Struct("<q")
RESULTS: dict[str, type] = {
    "encode": np.float32,  # (B,H,W,3) -> (B,h,w,channels)
    "decode": np.float32,  # (B,h,w,channels) -> (B,H,W,3)
    "encode_index": np.int64,  # (B,H,W,3) -> (B,h,w)
    "decode_index": np.float32,  # (B,h,w) -> (B,H,W,3)
    "forward": np.float32,  # (B,h,w) -> (B,h,w,K)
    "generate": np.int64,  # (3,), which are B, h and w -> (B,h,w)
    "compress": np.uint8,  # (H,W,3) -> (bytes,)
    "decompress": np.float32,  # (bytes,) -> (H,W,3)
}
