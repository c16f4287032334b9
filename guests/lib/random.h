/* SplitMix64: the same numbers on every run with the same seed. The host computes them too. */
#pragma once

#include "types.h"

/* The value for one position; neighbouring positions are independent. */
static inline u64 random_at(u64 seed, u64 position)
{
    u64 z = seed + (position + 1) * 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

/* FNV-1a over 32-bit words, to compare results. */
#define HASH_START 0xcbf29ce484222325
static inline u64 hash_word(u64 hash, u32 word) { return (hash ^ word) * 0x100000001b3; }
