#include "blocks.h"

#include <cstring>

namespace deepwell {

namespace {

uint32_t word(const uint8_t* p) {
  uint32_t w;
  std::memcpy(&w, p, 4);
  return w;
}

void put_word(uint8_t* p, uint32_t w) { std::memcpy(p, &w, 4); }
void put_half(uint8_t* p, const uint8_t* half) { std::memcpy(p, half, 2); }

constexpr uint32_t kNibbles = 0x0f0f0f0f;

// Sixteen bytes whose low nibbles are columns 0..15 and whose high nibbles are columns 16..31.
void split_nibbles(const uint8_t* q, uint32_t* words) {
  for (int i = 0; i < 4; ++i) {
    words[i] = word(q + 4 * i) & kNibbles;
    words[4 + i] = word(q + 4 * i) >> 4 & kNibbles;
  }
}

// Four bits, one per byte, at the given place of each byte.
uint32_t spread(uint32_t bits, int place) {
  const uint32_t b = bits & 15;
  return ((b & 1) | (b & 2) << 7 | (b & 4) << 14 | (b & 8) << 21) << place;
}

void add_fifth_bits(const uint8_t* bits, uint32_t* words) {
  const uint32_t high = word(bits);
  for (int j = 0; j < 8; ++j) words[j] |= spread(high >> (4 * j), 4);
}

inline void put_planes(int bits, const uint32_t* w, uint8_t* group, int r) {
  uint8_t* p = group + 4 * r;
  if (bits == 8) {
    for (int j = 0; j < 8; ++j) put_word(p + 64 * j, w[j]);
    return;
  }
  if (bits >= 4) {
    for (int v = 0; v < 4; ++v) put_word(p + 64 * v, (w[2 * v] & kNibbles) | (w[2 * v + 1] & kNibbles) << 4);
    p += 256;
  }
  if (bits == 6 || bits < 4) {
    const int from = bits == 6 ? 4 : 0;
    for (int v = 0; v < 2; ++v) {
      uint32_t pairs = 0;
      for (int i = 0; i < 4; ++i) pairs |= (w[4 * v + i] >> from & 0x03030303u) << (2 * i);
      put_word(p + 64 * v, pairs);
    }
    p += 128;
  }
  if (bits == 5 || bits == 3) {
    uint32_t single = 0;
    for (int j = 0; j < 8; ++j) single |= (w[j] >> (bits - 1) & 0x01010101u) << j;
    put_word(p, single);
  }
}

// Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, MXFP4: blocks of 32 columns, two to a block of the tile.
// Compiled per storage: it packs most weights of most files.
template <Storage s>
void put_small(const uint8_t* from, int blocks, uint8_t* block, int r) {
  constexpr Codes c = codes_of(s);
  const size_t bytes = block_size(s).bytes;
  for (int g = 0; g < blocks; ++g, from += bytes) {
    uint32_t words[8];
    const uint8_t* q = from + 2;
    if (s == Storage::kMxfp4) {
      block[g * 16 + r] = from[0];
      q = from + 1;
    } else {
      put_half(block + g * 32 + 2 * r, from);
    }
    if (c.scales == Scales::kHalfMin) {
      put_half(block + 64 + g * 32 + 2 * r, q);
      q += 2;
    }
    if (c.bits == 8) {
      for (int j = 0; j < 8; ++j) words[j] = word(q + 4 * j) ^ 0x80808080u;
    } else if (c.bits == 5) {
      split_nibbles(q + 4, words);
      add_fifth_bits(q, words);
    } else {
      split_nibbles(q, words);
    }
    put_planes(c.bits, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

// The eight 6-bit scales and minima that Q4_K and Q5_K pack into 12 bytes.
void put_k_scales(const uint8_t* p, uint8_t* block, int r) {
  for (int g = 0; g < 8; ++g) {
    const uint8_t scale = g < 4 ? p[g] & 63 : (p[g + 4] & 15) | p[g - 4] >> 6 << 4;
    const uint8_t minimum = g < 4 ? p[g + 4] & 63 : p[g + 4] >> 4 | p[g] >> 6 << 4;
    block[64 + g * 16 + r] = scale;
    block[64 + 128 + g * 16 + r] = minimum;
  }
}

// Q4_K: float16 d, dmin, 12 bytes of scales, then 32 bytes for each pair of groups: low nibbles, high nibbles.
// Q5_K: the same with 32 bytes of fifth bits before the nibbles; bit g of byte k belongs to column k of group g.
void put_k45(Storage s, const uint8_t* from, uint8_t* block, int r) {
  const Codes c = codes_of(s);
  put_half(block + 2 * r, from);
  put_half(block + 32 + 2 * r, from + 2);
  put_k_scales(from + 4, block, r);
  const uint8_t* high = from + 16;
  const uint8_t* q = from + (c.bits == 5 ? 48 : 16);
  for (int g = 0; g < 8; ++g) {
    uint32_t words[8];
    for (int j = 0; j < 8; ++j) {
      words[j] = word(q + g / 2 * 32 + 4 * j) >> (g % 2 * 4) & kNibbles;
      if (c.bits == 5) words[j] |= (word(high + 4 * j) >> g & 0x01010101u) << 4;
    }
    put_codes(c.bits, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

// Q6_K: 128 bytes of low nibbles, 64 of upper bit pairs, int8 scales of 16 groups of 16, float16 d. Each half of the
// block is four groups of 32: bytes 0..31 and 32..63 low nibbles are groups 0 and 1, their high nibbles 2 and 3; the
// pair of group g sits at bits 2g of the half's 32 bytes.
void put_q6(const uint8_t* from, uint8_t* block, int r) {
  const Codes c = codes_of(Storage::kQ6K);
  put_half(block + 2 * r, from + 208);
  for (int i = 0; i < 16; ++i) block[64 + i * 16 + r] = from[192 + i];
  for (int g = 0; g < 8; ++g) {
    const uint8_t* low = from + g / 4 * 64 + g % 2 * 32;
    const uint8_t* high = from + 128 + g / 4 * 32;
    uint32_t words[8];
    for (int j = 0; j < 8; ++j)
      words[j] = (word(low + 4 * j) >> (g % 4 / 2 * 4) & kNibbles) |
                 (word(high + 4 * j) >> (g % 4 * 2) & 0x03030303u) << 4;
    put_codes(6, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

// Q2_K: 16 bytes of scales (low nibble) and minima (high), 64 bytes of bit pairs, float16 d, dmin. Each half of the
// block is four groups of 32: group g at bits 2g of the half's 32 bytes.
void put_q2(const uint8_t* from, uint8_t* block, int r) {
  const Codes c = codes_of(Storage::kQ2K);
  put_half(block + 2 * r, from + 80);
  put_half(block + 32 + 2 * r, from + 82);
  for (int i = 0; i < 16; ++i) {
    block[64 + i * 16 + r] = from[i] & 15;
    block[64 + 256 + i * 16 + r] = from[i] >> 4;
  }
  for (int g = 0; g < 8; ++g) {
    uint32_t words[8];
    for (int j = 0; j < 8; ++j) words[j] = word(from + 16 + g / 4 * 32 + 4 * j) >> (g % 4 * 2) & 0x03030303u;
    put_codes(2, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

// Q3_K: 32 bytes of third bits (bit g of byte k: column k of group g), 64 bytes of bit pairs as in Q2_K, 12 bytes of
// 6-bit scales plus 32, float16 d. The low four bits of scale i are nibble i / 8 of byte i % 8, the upper two are pair
// i / 4 of byte 8 + i % 4.
void put_q3(const uint8_t* from, uint8_t* block, int r) {
  const Codes c = codes_of(Storage::kQ3K);
  put_half(block + 2 * r, from + 108);
  const uint8_t* p = from + 96;
  for (int i = 0; i < 16; ++i) {
    const int scale = (p[i % 8] >> (i / 8 * 4) & 15) | (p[8 + i % 4] >> (i / 4 * 2) & 3) << 4;
    block[64 + i * 16 + r] = static_cast<uint8_t>(scale - 32);
  }
  for (int g = 0; g < 8; ++g) {
    uint32_t words[8];
    for (int j = 0; j < 8; ++j)
      words[j] = (word(from + 32 + g / 4 * 32 + 4 * j) >> (g % 4 * 2) & 0x03030303u) |
                 (word(from + 4 * j) >> g & 0x01010101u) << 2;
    put_codes(3, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

// IQ4_XS: float16 d, 16 bits of upper scale pairs, 4 bytes of lower scale nibbles, then per group 16 bytes of nibbles.
void put_iq4_xs(const uint8_t* from, uint8_t* block, int r) {
  const Codes c = codes_of(Storage::kIq4Xs);
  put_half(block + 2 * r, from);
  const int high = from[2] | from[3] << 8;
  for (int g = 0; g < 8; ++g) {
    const int scale = (from[4 + g / 2] >> (g % 2 * 4) & 15) | (high >> (2 * g) & 3) << 4;
    block[64 + g * 16 + r] = static_cast<uint8_t>(scale - 32);
    uint32_t words[8];
    split_nibbles(from + 8 + g * 16, words);
    put_codes(4, words, block + c.header_bytes() + g * c.group_bytes(), r);
  }
}

}  // namespace

bool finite_scales(Storage s, const uint8_t* block) {
  if (s == Storage::kMxfp4) return block[0] <= 252;  // 12 * 2^(252 - 128) is the last that float32 holds
  const int at = s == Storage::kQ2K ? 80 : s == Storage::kQ3K ? 108 : s == Storage::kQ6K ? 208 : 0;
  const auto finite = [&](int i) { return (block[i + 1] & 0x7c) != 0x7c; };
  return finite(at) && (!codes_of(s).has_min() || finite(at + 2));
}

void put_codes(int bits, const uint32_t* w, uint8_t* group, int r) { put_planes(bits, w, group, r); }

void put_blocks(Storage s, const uint8_t* from, int blocks, uint8_t* block, int r) {
  switch (s) {
    case Storage::kQ4K:
    case Storage::kQ5K: return put_k45(s, from, block, r);
    case Storage::kQ6K: return put_q6(from, block, r);
    case Storage::kQ2K: return put_q2(from, block, r);
    case Storage::kQ3K: return put_q3(from, block, r);
    case Storage::kIq4Xs: return put_iq4_xs(from, block, r);
    case Storage::kInt8: return put_small<Storage::kInt8>(from, blocks, block, r);
    case Storage::kInt4: return put_small<Storage::kInt4>(from, blocks, block, r);
    case Storage::kQ4_1: return put_small<Storage::kQ4_1>(from, blocks, block, r);
    case Storage::kQ5_0: return put_small<Storage::kQ5_0>(from, blocks, block, r);
    case Storage::kQ5_1: return put_small<Storage::kQ5_1>(from, blocks, block, r);
    case Storage::kIq4Nl: return put_small<Storage::kIq4Nl>(from, blocks, block, r);
    case Storage::kMxfp4: return put_small<Storage::kMxfp4>(from, blocks, block, r);
    default: return;  // floats have no blocks: Matrix::row_bytes has refused them
  }
}

}  // namespace deepwell
