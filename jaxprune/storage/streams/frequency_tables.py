"""The tables of a bank: which table each context has, and the frequencies in each.

    varint n, n bytes of raw deflate of (the table of each context, the bits of each frequency)
    the bits of each frequency but the top one, from the lowest; the last byte ends in zeros

NumPy and the standard library only.
"""

import numpy as np

from ...coding import rans
from ...coding.contexts import CONTEXTS
from ...coding.table_banks import Bank
from ..format.words import FormatError
from .varints import ByteReader, deflate, encode_varint, inflate

MAX_LENGTH = rans.BITS + 1  # bits of a frequency


def write_tables(bank: Bank) -> bytes:
    """The tables as bytes."""
    frequencies = bank.freqs.astype(np.int64).ravel()
    lengths = np.ceil(np.log2(frequencies + 1)).astype(np.uint8)
    deflated = deflate(bank.table_of.tobytes() + lengths.tobytes())
    bits = frequencies[:, None] >> np.arange(rans.BITS) & 1
    stored_bits = bits[_below_top_bit(lengths)].astype(np.uint8)
    packed = np.packbits(stored_bits, bitorder="little").tobytes()
    return encode_varint(len(deflated)) + deflated + packed


def read_tables(reader: ByteReader, num_tables: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(the table of each context, the frequencies of each table).

    Raises:
      FormatError: too few bytes, an unknown table, or frequencies that do not sum to 4,096.
    """
    size = CONTEXTS + num_tables * width
    plain = np.frombuffer(inflate(reader.bytes(reader.varint()), size), np.uint8)
    table_of = plain[:CONTEXTS]
    lengths = plain[CONTEXTS:]
    if plain.size != size or table_of.max() >= num_tables or lengths.max() > MAX_LENGTH:
        raise FormatError(
            "a bank's tables do not fit: their number, a context's table, or a frequency"
        )
    frequencies = _read_frequencies(reader, lengths).reshape(num_tables, width)
    if (frequencies.sum(1) != rans.TOTAL).any():
        raise FormatError(f"the frequencies of a table do not sum to {rans.TOTAL}")
    return table_of, frequencies.astype(np.uint16)


def _read_frequencies(reader: ByteReader, lengths: np.ndarray) -> np.ndarray:
    stored = _below_top_bit(lengths)
    num_bits = int(np.count_nonzero(stored))
    packed = np.frombuffer(reader.bytes(-(-num_bits // 8)), np.uint8)
    unpacked = np.unpackbits(packed, bitorder="little")
    if unpacked[num_bits:].any():
        raise FormatError("the padding of the tables is not zero")
    bits = np.zeros((lengths.size, rans.BITS + 1), np.int64)
    bits[:, :-1][stored] = unpacked[:num_bits]
    used = lengths > 0
    bits[used, lengths[used] - 1] = 1
    return bits @ (1 << np.arange(rans.BITS + 1))


def _below_top_bit(lengths: np.ndarray) -> np.ndarray:
    """Which of 12 bits lie below the top one."""
    return np.arange(rans.BITS) < lengths[:, None].astype(np.int64) - 1
