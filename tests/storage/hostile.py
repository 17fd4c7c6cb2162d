"""Files made to harm, by name, and the means to make them. Checksums are right: a forger can
compute them.
"""

import contextlib
import json
import struct
import sys
import zlib

import numpy as np
from hypothesis import strategies as st

from jaxprune.storage.format import words as f


@contextlib.contextmanager
def lines_run():
    """[the number of lines of Python run inside]: what a slow file costs, on any machine."""
    count = [0]
    before = sys.gettrace()

    def trace(frame, event, arg):
        count[0] += event == "line"
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


# --- making files
# ---------------------------------------------------------------------------------------


def file_of(manifest, data=b"", crcs=None, tail=b"", zdict=f.DICTIONARY, version=f.FIRST):
    """A file whose checksums are all right, whatever it says."""
    text = (
        manifest
        if isinstance(manifest, bytes)
        else json.dumps(manifest, separators=(",", ":")).encode()
    )
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, 0, zdict)
    crcs = [zlib.crc32(data)] if crcs is None else crcs
    body = deflate.compress(text) + deflate.flush() + tail + struct.pack(f"<{len(crcs)}I", *crcs)
    return with_manifest(body, data, version)


def with_manifest(body, data=b"", version=f.FIRST):
    manifest = struct.pack("<I", zlib.crc32(body)) + body
    return f.header(len(manifest), len(data), version) + manifest + data


def with_header(text, rest=b""):
    raw = text if isinstance(text, bytes) else json.dumps(text).encode()
    return struct.pack("<Q", len(raw)) + raw + rest


def tree_of(node, data=b"", **kw):
    return file_of({"t": node, "p": 0}, data, **kw)


def unguarded(raw, payload):
    """The file of one leaf with other bytes of data, and a checksum that fits them: what a forger
    would write.
    """
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    size = header["jp.manifest"]["shape"][0]
    version = int(header["__metadata__"]["jaxprune"])
    body = raw[8 + length : 8 + length + size]
    text = zlib.decompressobj(-15, zdict=f.DICTIONARY).decompress(body[4:])
    return file_of(text, payload, crcs=[zlib.crc32(payload)], version=version)


def array(row, data):
    return tree_of({"w": row}, data)


def varint(n):
    out = []
    while n >= 128:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def rans(freqs, words=(), states=(1 << 16,), base=0, lanes=None, k=None):
    """A stream of the rans codec with a plain table."""
    lanes = len(states) if lanes is None else lanes
    k = len(freqs) if k is None else k
    head = varint(base) + varint(lanes) + varint(2 * (k - 1))
    table = b"".join(map(varint, freqs))
    return (
        head
        + table
        + struct.pack(f"<{len(states)}I", *states)
        + struct.pack(f"<{len(words)}H", *words)
    )


def coded(stream, dtype="u1", shape=(4,), codec=f.RANS):
    return array([dtype, list(shape), codec, len(stream)], stream)


FLOATS = np.array([1.0, 2.0], "<f4").tobytes()
GOOD = array(["f4", [2]], FLOATS)
HEADER = json.loads(GOOD[8 : 8 + struct.unpack("<Q", GOOD[:8])[0]])
REST = GOOD[8 + struct.unpack("<Q", GOOD[:8])[0] :]


def header_with(**changes):
    return with_header(json.dumps({**HEADER, **changes}, separators=(",", ":")).encode(), REST)


def tensor(name, **changes):
    return header_with(**{name: {**HEADER[name], **changes}})


def versioned(version):
    return header_with(__metadata__={"jaxprune": version})


def masked(values, kept=3, data=b"", shape=(4,)):
    """A Masked whose mask of 4 has `kept` True entries, and whose values are said to be
    `values`.
    """
    bits = bytes([0, 1, (1 << kept) - 1])
    return tree_of({"w": ["M", ["?", list(shape), 1, 3], values]}, bits + data)


def clustered(k, indices):
    words = np.asarray(indices, np.uint8)
    book = np.zeros(k, "<f4").tobytes()
    return tree_of(
        {"w": ["C", ["f4", [k]], ["u1", [len(words)], 0, len(words)]]}, book + words.tobytes()
    )


DEEP = b"[" * 200_000
U1 = ["u1", [4]]
SCALE = ["f4", [1]]

HOSTILE = {
    # 1, 2: too short, and lengths of the header
    "empty": b"",
    "seven bytes": b"1234567",
    "header length 0": struct.pack("<Q", 0) + GOOD[8:],
    "header length past the end": struct.pack("<Q", len(GOOD)) + GOOD[8:],
    "header length 2^63": struct.pack("<Q", 2**63) + GOOD[8:],
    "header length 2^64-1": struct.pack("<Q", 2**64 - 1) + GOOD[8:],
    # 3, 4: the header's text
    "header is not UTF-8": with_header(b'{"\xff":1}   ', REST),
    "header has a BOM": with_header(b"\xef\xbb\xbf" + json.dumps(HEADER).encode(), REST),
    "header is an array": with_header(b"[]", REST),
    "header has a tail": with_header(json.dumps(HEADER).encode() + b"x", REST),
    "header is deep": with_header(DEEP[:4000], REST),
    "header has NaN": with_header(json.dumps(HEADER).encode()[:-1] + b',"x":NaN}', REST),
    "header has other spaces": with_header(json.dumps(HEADER).encode(), REST),
    "manifest is deep": file_of(b'{"p":0,"t":' + DEEP),
    "manifest is deep and closed": file_of(b'{"p":0,"t":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "manifest nests Commons": file_of(
        b'{"p":0,"t":' + b'["G",["f4",[0]],' * 900 + b"1" + b"]" * 900 + b"}", crcs=[0] * 900
    ),
    "manifest nests dicts": tree_of(json.loads('{"a":' * 80 + "1" + "}" * 80), crcs=[]),
    "a number of 100,000 digits": file_of(b'{"p":0,"t":' + b"9" * 100_000 + b"}", crcs=[]),
    "a number of 1e999": file_of(b'{"p":0,"t":1e999}', crcs=[]),
    "a number NaN": file_of(b'{"p":0,"t":NaN}', crcs=[]),
    "a number -Infinity": file_of(b'{"p":0,"t":-Infinity}', crcs=[]),
    "not finite, misspelt": tree_of({"w": ["x", "NaN"]}, crcs=[]),
    "not finite, evaluated": tree_of({"w": ["x", "__import__('os')"]}, crcs=[]),
    "a number of 65 bits": tree_of({"w": 2**63}, crcs=[]),
    # 5: keys twice
    "header has a key twice": with_header(
        b'{"__metadata__":{"jaxprune":"1"},' + json.dumps(HEADER).encode()[1:], REST
    ),
    "manifest has a key twice": file_of(b'{"p":0,"t":1,"t":1}', crcs=[]),
    "tree has a key twice": file_of(b'{"p":0,"t":{"a":1,"a":1}}', crcs=[]),
    "integer keys twice": tree_of(["i", 1, 1, 1, 1], crcs=[]),
    "integer keys out of order": tree_of(["i", 2, 1, 1, 1], crcs=[]),
    # 6, 7: where integers are due, and shapes
    **{
        f"{what} is {value!r}": tree_of(make(value), FLOATS)
        for value in (True, 2.0, "2", None, -1, [2], 2**63)
        for what, make in {
            "an axis": lambda v: {"w": ["f4", [v]]},
            "a codec": lambda v: {"w": ["u1", [8], v, 8]},
            "a length": lambda v: {"w": ["u1", [8], 1, v]},
        }.items()
    },
    **{
        f"integer key {key!r}": tree_of(["i", key, 1], crcs=[])
        for key in (True, 1.0, "1", None, 2**63)
    },
    **{
        f"prediction {p!r}": file_of({"t": 1, "p": p}, crcs=[])
        for p in (True, 1.0, "1", None, -1, 2**64)
    },
    "shape is 0 outside a mask": array(["f4", 0, 0, 8], FLOATS),
    "shape is false outside a mask": array(["f4", False, 0, 8], FLOATS),
    "shape overflows": array(["f4", [2**32, 2**32]], FLOATS),
    "shape overflows at 0": array(["f4", [0, 2**40, 2**40]], b""),
    "shape of 33 axes": array(["f4", [1] * 33], FLOATS[:4]),
    "shape is an object": array(["f4", {"0": 2}], FLOATS),
    # 8: offsets
    "trailing byte": GOOD + b"\0",
    "a byte short": GOOD[:-1],
    "data not covered": array(["f4", [2]], FLOATS + b"\0\0\0\0"),
    "data short": array(["f4", [3]], FLOATS),
    "raw length too long": array(["f4", [2], 0, 12], FLOATS + b"\0\0\0\0"),
    "length past the end": array(["u1", [8], 1, 2**62], FLOATS),
    "offsets reversed": tensor("jp.data", data_offsets=[8, 0]),
    "offsets with a gap": tensor(
        "jp.data", data_offsets=[HEADER["jp.data"]["data_offsets"][0] + 1] * 2
    ),
    "offsets overlap": tensor("jp.data", data_offsets=[0, 8]),
    "data of 2^62 bytes": tensor("jp.data", shape=[2**62]),
    "data of -1 bytes": tensor("jp.data", shape=[-1]),
    "data of true bytes": tensor("jp.data", shape=[True]),
    "data of F32": tensor("jp.data", dtype="F32"),
    "manifest of 0 bytes": tensor("jp.manifest", shape=[0]),
    "a third tensor": header_with(**{"jp.more": HEADER["jp.data"]}),
    "no data": with_header({k: v for k, v in HEADER.items() if k != "jp.data"}, REST),
    # 9, 10: the manifest's stream, and counts
    "manifest truncated": with_manifest(REST[4:-20], FLOATS),
    "manifest twice": file_of({"t": 1, "p": 0}, crcs=[], tail=zlib.compress(b"{}")),
    "manifest with another dictionary": file_of(
        {"t": {"mean": 1}, "p": 0}, crcs=[], zdict=f.DICTIONARY[::-1]
    ),
    "manifest with a tail": file_of({"t": 1, "p": 0}, crcs=[], tail=b"\0"),
    "manifest with zlib's header": with_manifest(zlib.compress(b'{"t":1,"p":0}')),
    "manifest is no deflate": with_manifest(b"\xff" * 40),
    "manifest bomb of spaces": file_of(b'{"t":1,"p":0}' + b" " * (80 << 20), crcs=[]),
    "manifest bomb of arrays": file_of(b'{"p":0,"t":["l"' + b",[]" * 3_000_000 + b"]}", crcs=[]),
    "manifest of nothing": with_manifest(b""),
    "manifest without p": file_of({"t": 1}, crcs=[]),
    "manifest with an unknown key": file_of({"t": 1, "p": 0, "z": 0}, crcs=[]),
    "manifest is an array": file_of([], crcs=[]),
    "manifest with a lone surrogate": file_of(b'{"p":0,"t":{"\\ud800":1}}', crcs=[]),
    "metadata is a list": file_of({"t": 1, "p": 0, "m": []}, crcs=[]),
    "a checksum too few": tree_of({"w": ["f4", [2]]}, FLOATS, crcs=[]),
    "a checksum too many": tree_of({"w": ["f4", [2]]}, FLOATS, crcs=[zlib.crc32(FLOATS), 0]),
    "a wrong checksum": tree_of({"w": ["f4", [2]]}, FLOATS, crcs=[1]),
    "a wrong checksum of no bytes": tree_of({"w": ["f4", [0]]}, crcs=[7]),
    "wrong checksum of the manifest": GOOD[:-8].replace(REST[:4], b"\0\0\0\0") + FLOATS,
    # 11-16: the rans codec
    "zero-bit bomb": coded(rans([4096], states=[1 << 16] * 4), shape=[2**36]),
    "slow bomb": coded(rans([4096]), shape=[2**20]),
    "slow bomb of two symbols": coded(rans([4095, 1]), shape=[2**20]),
    "no lanes": coded(rans([4095, 1], states=[])),
    "more lanes than symbols": coded(rans([4095, 1], states=[1 << 16] * 5)),
    "lanes longer than the stream": coded(rans([4095, 1], lanes=4)),
    "lanes of 2^60": coded(rans([4095, 1], lanes=2**60)),
    "table sums to 4095": coded(rans([4094, 1])),
    "table sums to 4096 modulo 2^16": coded(rans([8191] * 8 + [4104])),
    "table of zeros": coded(rans([0, 0])),
    "table of no symbols that go on": coded(rans([], k=9)),
    "table of 4097 symbols": coded(rans([0] * 4096 + [4096], states=[1 << 16])),
    "table's frequency of 3 bytes": coded(
        varint(0) + varint(1) + varint(2) + b"\x80\x80\x01\x01" + bytes(8)
    ),
    "table that does not inflate": coded(varint(0) + varint(1) + varint(3) + b"\xff" * 20),
    "table that inflates to a bomb": coded(
        varint(0) + varint(1) + varint(3) + zlib.compress(bytes(1 << 20), 9)[2:-4]
    ),
    "table that inflates too short": coded(
        varint(0) + varint(1) + varint(9) + zlib.compress(b"\1\1")[2:-4] + bytes(8)
    ),
    "state below 2^16": coded(rans([4095, 1], states=[65535])),
    "state that ends elsewhere": coded(rans([2048, 2048], states=[1 << 21])),
    "words left over": coded(rans([4095, 1], words=[1])),
    "words missing": coded(rans([1, 4095], states=[1 << 16], words=[]), shape=[16]),
    "an odd byte": coded(rans([4095, 1]) + b"\0"),
    "a stream of nothing": coded(b""),
    "an endless integer": coded(b"\xff" * 30),
    "rans for floats": coded(rans([4096]), dtype="f4"),
    "symbols above the dtype": coded(rans([0] * 300 + [4096]), dtype="u1", shape=[1]),
    "base above the dtype": coded(rans([4096], base=2 * 300), shape=[1]),
    "base below the dtype": coded(rans([4096], base=1), shape=[1]),
    "a mask of 0 … 2": coded(rans([0, 0, 4096]), dtype="?", shape=[1]),
    # 17: structure
    "an index of k": clustered(3, [0, 1, 3]),
    "an empty codebook": clustered(0, [0]),
    "a codebook of no axes": tree_of({"w": ["C", ["f4", []], ["u1", [4]]]}, bytes(8)),
    "tiles that do not divide": tree_of({"w": ["C", ["f4", [3, 1]], ["u1", [4]]]}, bytes(16)),
    "no tiles": tree_of({"w": ["C", ["f4", [0, 1]], ["u1", [4]]]}, bytes(4)),
    "no codebook": tree_of({"w": ["C", None, U1]}, bytes(4)),
    "indices of floats": tree_of({"w": ["C", ["f4", [4]], ["f4", [1]]]}, bytes(20)),
    "indices are a code": tree_of({"w": ["C", ["f4", [4]], ["P", 4, 0, U1]]}, bytes(20)),
    "an assignment of k": tree_of(
        {"w": ["R", -2, ["f4", [1, 2]], ["u1", [1]], SCALE]}, bytes(8) + b"\1" + bytes(4)
    ),
    "assignment and scale": tree_of(
        {"w": ["R", -2, ["f4", [1, 2]], ["u1", [2]], SCALE]}, bytes(14)
    ),
    "more values than the mask": masked(["u1", 0, 0, 4], data=bytes(4)),
    "fewer values than the mask": masked(["u1", 0, 0, 2], data=bytes(2)),
    "a mask of bytes": tree_of({"w": ["M", ["u1", [4]], ["f4", [4]]]}, bytes(20)),
    "a mask that is raw": tree_of({"w": ["M", ["?", [4]], ["f4", [4]]]}, bytes(20)),
    "no mask": tree_of({"w": ["M", None, ["f4", [4]]]}, bytes(16)),
    "mask and values": tree_of(
        {"w": ["M", ["?", [4], 1, 3], ["f4", [3]]]}, bytes([0, 1, 7]) + bytes(12)
    ),
    "scale and integers": tree_of({"w": ["Q", 8, "f4", 0, U1, ["f4", [3]], None]}, bytes(16)),
    "no scale": tree_of({"w": ["Q", 8, "f4", 0, U1, None, None]}, bytes(4)),
    "a grid that is not there": tree_of({"w": ["Q", 8, "f4", 1, U1, SCALE, None]}, bytes(8)),
    "a grid of true": file_of(
        {"t": ["Q", 8, "f4", 1, U1, SCALE, None], "p": 0, "g": [[True]]}, bytes(8)
    ),
    "a grid of text": file_of(
        {"t": ["Q", 8, "f4", 1, U1, SCALE, None], "p": 0, "g": ["x"]}, bytes(8)
    ),
    "bits of 0": tree_of({"w": ["P", 0, 0, U1]}, bytes(4)),
    "bits of 8": tree_of({"w": ["P", 8, 0, U1]}, bytes(4)),
    "bits of 2^70": tree_of({"w": ["P", 2**70, 0, U1]}, bytes(4)),
    "a sign of 2": tree_of({"w": ["P", 4, 2, U1]}, bytes(4)),
    "integers beyond their bits": tree_of({"w": ["P", 2, 0, U1]}, bytes([0, 1, 2, 4])),
    "packed of no axes": tree_of({"w": ["P", 2, 0, ["u1", []]]}, bytes(1)),
    "packed of 16 bits": tree_of({"w": ["P", 2, 0, ["u2", [2]]]}, bytes(4)),
    "an axis of 0": tree_of({"w": ["S", 0, 1, ["f4", [2]]]}, FLOATS),
    "an axis of -2 of 1": tree_of({"w": ["S", -2, 1, ["f4", [2]]]}, FLOATS),
    "a rank of 2 of 1": tree_of({"w": ["S", -1, 2, ["f4", [2]]]}, FLOATS),
    "factors": tree_of({"w": ["L", ["f4", [2, 3]], ["f4", [2, 3]]]}, bytes(48)),
    "factors of one axis": tree_of({"w": ["L", ["f4", [2]], ["f4", [2]]]}, bytes(16)),
    "factors too large together": tree_of(
        {"w": ["L", ["L", ["u1", [2**26, 0]], ["u1", [0, 2**26]]], ["u1", [2**26, 0]]]}, b""
    ),
    "a core of one axis": tree_of(
        {"w": ["T", ["f4", [2]], ["f4", [2, 2]], ["f4", [2, 2]]]}, bytes(40)
    ),
    "a Common of a number": tree_of(["G", 1.0, {}], crcs=[]),
    "a Common inside a code": tree_of({"w": ["D", "", ["G", ["f4", [2]], 1]]}, FLOATS),
    "a dict inside a code": tree_of({"w": ["D", "", {"a": ["f4", [2]]}]}, FLOATS),
    "a number inside a code": tree_of({"w": ["D", "", 1.0]}, crcs=[0]),
    "a reason of 2,000 letters": tree_of({"w": ["D", "x" * 2000, ["f4", [2]]]}, FLOATS),
    "a part too few": tree_of({"w": ["L", ["f4", [2]]]}, FLOATS),
    "a part too many": tree_of({"w": ["D", "", ["f4", [1]], ["f4", [1]]]}, FLOATS),
    # 19: the bits codec
    "bits that pad": coded(bytes([0, 1, 0xFF]), codec=f.BITS),
    "a width of 33": coded(bytes([0, 33]) + bytes(17), codec=f.BITS),
    "a width of 255": coded(bytes([0, 255]), codec=f.BITS),
    "bits too short": coded(bytes([0, 8, 1, 1, 1]), codec=f.BITS),
    "bits too long": coded(bytes([0, 8, 1, 1, 1, 1, 1]), codec=f.BITS),
    "bits above the dtype": coded(bytes([10, 8, 1, 1, 1, 255]), codec=f.BITS),
    "bits of an empty array": coded(bytes([0, 0]), codec=f.BITS, shape=[0]),
    "floats of 1 bit": coded(bytes([0, 1, 0]), dtype="f4", codec=f.BITS),
    "floats of no width": coded(bytes([0]), dtype="f4", codec=f.BITS),
    "floats of 0 bits and a byte": coded(bytes([0, 0, 0]), dtype="f4", codec=f.BITS),
    "a float of 33 bits": coded(varint(2**33) + bytes([0]), dtype="f4", codec=f.BITS),
    "a float below 0": coded(bytes([1, 0]), dtype="f4", codec=f.BITS),
    "width-0 bomb of floats": coded(bytes([0, 0]), dtype="f4", codec=f.BITS, shape=[2**40]),
    "width-0 bomb": coded(bytes([0, 0]), codec=f.BITS, shape=[2**40]),
    # 20: unknown words
    **{
        f"dtype {x!r}": array([x, [2]], FLOATS)
        for x in ("", "O", "V16", ">f4", "float32", "f16", "=", "==f4", "M8", 4, None)
    },
    **{
        f"dense dtype {x!r}": tree_of({"w": ["B", x, U1, SCALE]}, bytes(8))
        for x in ("O", "=f4", 4, None, ["f4"])
    },
    "codec 3": array(["u1", [8], 3, 8], FLOATS),
    "an unknown kind of code": tree_of({"w": ["Z", ["f4", [2]]]}, FLOATS),
    "a class's name": tree_of({"w": ["Masked", ["f4", [2]]]}, FLOATS),
    "an empty row": tree_of({"w": []}, FLOATS),
    "a row of three": array(["f4", [2], 0], FLOATS),
    "text in the tree": tree_of({"w": "f4"}, crcs=[]),
    "raw int4": array(["int4", [2]], b"\x7f\x7f"),
    "raw float4": array(["float4_e2m1fn", [2]], b"\x7f\x7f"),
    # 21: other files and versions
    **{
        f"version {v!r}": versioned(v)
        for v in ("0", "", "1 ", "1.0", "01", "²", "x", 1, None, True)
    },
    "no version": header_with(__metadata__={}),
    "another format": header_with(__metadata__={"format": "pt"}),
    "no metadata": with_header({k: v for k, v in HEADER.items() if k != "__metadata__"}, REST),
    "plain safetensors": with_header(
        {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, FLOATS
    ),
    "pickle": b"\x80\x04\x95" + bytes(40),
    "zip": b"PK\x03\x04" + bytes(40),
    "gguf": b"GGUF\x03\x00\x00\x00" + bytes(40),
    "numpy": b"\x93NUMPY\x01\x00" + bytes(40),
}

odd_words = ["l", "t", "i", "x", "G", "nan", "=f4", 0, 1, 2, -1, 4, 8, 2**63, True, None, 1.5]


def lists_and_dicts(kids):
    return st.lists(kids, max_size=5) | st.dictionaries(st.text(max_size=3), kids, max_size=3)


json_nodes = st.recursive(
    st.sampled_from([*f.KINDS, *f.DTYPES, *odd_words]), lists_and_dicts, max_leaves=25
)
