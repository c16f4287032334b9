//! One page message from a peer: any bytes are a message or an error, and a message has only one
//! encoding. Input: a byte for the number of nodes, then header and body.
#![no_main]

use dsm_core::wire::{FrameHeader, HEADER_LEN, Limits, decode, encode_in};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&nodes, bytes)) = data.split_first() else { return };
    let limits = Limits { nodes: usize::from(nodes % 64) + 1, pages: 1 << 20 };
    let Ok(Some(header)) = FrameHeader::parse_prefix(bytes) else { return };
    let Ok(message) = decode(&header, &bytes[HEADER_LEN..], &limits) else { return };
    let mut again = Vec::new();
    encode_in(header.epoch(), &message, header.region(), &mut again);
    assert_eq!(again, bytes, "a second encoding of {message:?}");
});
