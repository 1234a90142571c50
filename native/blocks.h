// ggml's quantised blocks, as GGUF files hold them: one row's block of 32 or 256 columns turned into codes and scales.
#pragma once
#include "storage.h"

namespace deepwell {

// Whether the scales of one ggml block are finite numbers, and with them every value it can hold.
bool finite_scales(Storage storage, const uint8_t* block);

// Where one row's part of a block of a tile goes (storage.h): `header` and `codes` point at the block, r is the lane.
// Reads `blocks` ggml blocks that make up one block of the tile; the rest of a last, incomplete one stays zero.
void put_blocks(Storage storage, const uint8_t* from, int blocks, uint8_t* block, int r);

// Packs the codes of 32 columns, four per word (byte b of word j = code 4j + b), into lane r of a group's planes.
void put_codes(int bits, const uint32_t* words, uint8_t* group, int r);

}  // namespace deepwell
