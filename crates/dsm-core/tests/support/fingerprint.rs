//! 128-bit fingerprints of states: with 10 million states, two collide with probability 1e-25.

use std::hash::{Hash, Hasher};

const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0xd6e8_feb8_6659_fd93;

/// Two independent folded multiplications.
#[derive(Clone)]
struct Folding(u64, u64);

impl Folding {
    fn add(&mut self, word: u64) {
        let first = u128::from(self.0 ^ word) * u128::from(FIRST);
        let second = u128::from(self.1.wrapping_add(word) ^ FIRST) * u128::from(SECOND);
        self.0 = (first as u64 ^ (first >> 64) as u64).wrapping_add(SECOND);
        self.1 = (second as u64 ^ (second >> 64) as u64).rotate_left(23) ^ word;
    }
}

impl Hasher for Folding {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.add(u64::from_le_bytes(word));
        }
        self.add(bytes.len() as u64);
    }
    fn write_u8(&mut self, word: u8) {
        self.add(u64::from(word));
    }
    fn write_u32(&mut self, word: u32) {
        self.add(u64::from(word));
    }
    fn write_u64(&mut self, word: u64) {
        self.add(word);
    }
    fn write_usize(&mut self, word: usize) {
        self.add(word as u64);
    }
    fn write_isize(&mut self, word: isize) {
        self.add(word as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The fingerprint of `value`.
pub fn fingerprint(value: &impl Hash) -> u128 {
    let mut hasher = Folding(SECOND, FIRST);
    value.hash(&mut hasher);
    u128::from(hasher.0) << 64 | u128::from(hasher.1)
}

/// For maps whose keys are fingerprints already.
#[derive(Default)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are keys");
    }
    fn write_u128(&mut self, fingerprint: u128) {
        self.0 = fingerprint as u64;
    }
    fn finish(&self) -> u64 {
        self.0
    }
}
