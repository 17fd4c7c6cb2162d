"""Files of other tools that are not read: what they are, by their first bytes, and how to get their
arrays out.

Nothing here opens a pickle, or needs the tool.
"""

from collections.abc import Sequence
from typing import NamedTuple

SAVE = 'safetensors.numpy.save_file({name: array}, "model.safetensors")'
TORCH = 'safetensors.torch.save_file(torch.load(FILE, weights_only=True), "model.safetensors")'
KERAS = (
    'numpy.savez("model.npz", **{w.path: w.numpy() for w in keras.models.load_model(FILE).weights})'
)
HDF5 = "read its datasets with h5py, or its model with Keras, and save them with numpy.savez"
TENSORFLOW = "read its variables with tf.train.load_checkpoint(FILE) and save them with numpy.savez"


class Kind(NamedTuple):
    """A kind of file: what it is called, and how its arrays become a file that is read."""

    name: str
    way_out: str

    def __str__(self) -> str:
        return f"this is {self.name}, which is not read: {self.way_out}"


PICKLE = Kind(
    "a pickle, as PyTorch's .pt, .pth and .bin or pickle.dump make it",
    f"a pickle can run any code. Where you trust it, load it with its own tool and use {TORCH} or "
    f"{SAVE}",
)
TORCH_FILE = Kind("a PyTorch checkpoint", f"in PyTorch, {TORCH}")
SAVED_MODEL = Kind(
    "a TensorFlow SavedModel", "load it and save its variables with numpy.savez, by name"
)
TF_CHECKPOINT = Kind("a TensorFlow checkpoint", TENSORFLOW)
ONNX = Kind(
    "an ONNX model", f"use {SAVE} with onnx.numpy_helper.to_array of each of its initializers"
)
JSON = Kind(
    "JSON",
    "of a model in shards, *.safetensors.index.json and the shards beside it are read; give that, "
    "or the folder",
)
MSGPACK = Kind(
    "msgpack that is no map of names", "what flax.serialization.to_bytes writes of a dict is read"
)

# First bytes, and what has them.
MAGIC: tuple[tuple[int, bytes, Kind], ...] = (
    (0, b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file (.h5, .hdf5, Keras weights)", HDF5)),
    (
        0,
        b"GGUF",
        Kind(
            "a GGUF file",
            f"use {SAVE} with gguf.dequantize of each tensor of gguf.GGUFReader(FILE)",
        ),
    ),
    (
        4,
        b"TFL3",
        Kind(
            "a TensorFlow Lite model",
            "read its tensors with tf.lite.Interpreter; its source is better",
        ),
    ),
    (
        0,
        b"\x1f\x8b",
        Kind("a gzip archive", "unpack it with gunzip or tar, and give what is in it"),
    ),
    (
        0,
        b"\x28\xb5\x2f\xfd",
        Kind("a zstd archive", "unpack it with zstd -d, and give what is in it"),
    ),
    (0, b"\xfd7zXZ\0", Kind("an xz archive", "unpack it with xz -d, and give what is in it")),
    (0, b"BZh", Kind("a bzip2 archive", "unpack it with bunzip2, and give what is in it")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", "unpack it, and give what is in it")),
    (257, b"ustar", Kind("a tar archive", "unpack it with tar, and give what is in it")),
    (
        0,
        b"version https://git-lfs",
        Kind("a pointer of Git LFS, not the file itself", "fetch it with git lfs pull"),
    ),
    (0, b"<!DOCTYPE", Kind("a web page, not the file itself", "download the file again")),
    (0, b"<!doctype", Kind("a web page, not the file itself", "download the file again")),
    (0, b"<html", Kind("a web page, not the file itself", "download the file again")),
)
FIRST = 512  # bytes that tell

# The last 8 bytes of the tables in which TensorFlow keeps the index of a checkpoint (those of
# LevelDB).
LEVELDB = bytes.fromhex("57fb808b247547db")

OF_ARCHIVE: tuple[tuple[str, Kind], ...] = (
    ("data.pkl", TORCH_FILE),
    ("constants.pkl", TORCH_FILE),
    ("model.weights.h5", Kind("a Keras model (.keras)", f"in Keras, {KERAS}")),
)

OF_FOLDER: tuple[tuple[tuple[str, ...], Kind], ...] = (
    (("saved_model.pb", "saved_model.pbtxt"), SAVED_MODEL),
    (
        (".pt", ".pth", ".bin", ".ckpt"),
        Kind("a folder of PyTorch files", f"in PyTorch, for each, {TORCH}"),
    ),
    ((".ckpt.index", ".data-00000-of-00001", ".index"), TF_CHECKPOINT),
    (
        (".zarray", ".zgroup", "zarr.json"),
        Kind("a Zarr store", "open it with zarr and save its arrays as .npz"),
    ),
)


def of_file(first: bytes, last: bytes) -> str:
    """What a file is that is read by nothing here; "" where nothing tells.

    Args:
      first: its first `FIRST` bytes.
      last: its last 8 bytes.

    >>> print(of_file(b"GGUF\\3\\0", b"")[:35])
    this is a GGUF file, which is not r
    """
    if not first:
        return "the file is empty"
    for place, magic, kind in MAGIC:
        if first[place:].startswith(magic):
            return str(kind)
    if _is_pickle(first):
        return str(PICKLE)
    if last == LEVELDB:
        return str(TF_CHECKPOINT)
    if (
        first[:1] == b"\x08"
        and first[1:2] < b"\x20"
        and first[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"\x42")
    ):
        return str(ONNX)
    if first.lstrip()[:1] == b"{":
        return str(JSON)
    return ""


def _is_pickle(first: bytes) -> bool:
    """Protocols 2 to 5 say so; older ones of a dict, a list or a class begin as text."""
    protocol = first[:1] == b"\x80" and 2 <= (first[1] if len(first) > 1 else 0) <= 5
    return protocol or first.startswith((b"(dp", b"(lp", b"ccopy_reg\n", b"c__builtin__\n"))


def of_archive(names: Sequence[str]) -> str:
    """What a zip archive with these members is, if it is no .npz."""
    for member, kind in OF_ARCHIVE:
        if any(name == member or name.endswith("/" + member) for name in names):
            return str(kind)
    return ""


def of_folder(names: Sequence[str]) -> str:
    """What a folder with these names in it is, if it is no checkpoint that is read."""
    for ends, kind in OF_FOLDER:
        if any(name.endswith(ends) for name in names):
            return str(kind)
    return ""
