//! Tests of the real-time clock.

use super::super::host::fake::FakeClock;
use super::*;

/// Saturday 2023-11-04, 17:08:09.
const START_S: u32 = 1_699_117_689;
const ALL: [u8; 8] = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];

fn bench() -> (Rtc, FakeClock) {
    let clock = FakeClock::default();
    let memory = RtcMemory { below_4g: 3 << 30, above_4g: 1 << 30 };
    (Rtc::new(START_S, memory, clock.shared()), clock)
}

fn get(rtc: &Rtc, index: u8) -> u8 {
    rtc.write(INDEX, Data::from_u64(index.into(), 1));
    rtc.read(DATA, 1).to_u64() as u8
}

fn set(rtc: &Rtc, index: u8, value: u8) {
    // Both ports with one access, as some do.
    rtc.write(INDEX, Data::from_u64(u64::from(value) << 8 | u64::from(index), 2));
}

#[test]
fn shows_the_time_in_each_format() {
    let (rtc, clock) = bench();
    assert_eq!(ALL.map(|i| get(&rtc, i)), [0x09, 0x08, 0x17, 0x07, 0x04, 0x11, 0x23, 0x20]);
    clock.advance_ns(7 * 3600 * NS);
    assert_eq!(ALL.map(|i| get(&rtc, i)), [0x09, 0x08, 0x00, 0x01, 0x05, 0x11, 0x23, 0x20]);
    set(&rtc, STATUS_B, B_BINARY);
    assert_eq!(get(&rtc, HOURS), 12, "midnight is 12 am");
    clock.advance_ns(13 * 3600 * NS);
    assert_eq!(get(&rtc, HOURS), 0x81, "1 pm");
    set(&rtc, STATUS_B, B_BINARY | B_24_HOURS);
    assert_eq!(ALL.map(|i| get(&rtc, i)), [9, 8, 13, 1, 5, 11, 23, 20]);
}

#[test]
fn the_nmi_bit_of_the_index_is_ignored() {
    let (rtc, _) = bench();
    assert_eq!(get(&rtc, 0x80 | YEAR), 0x23);
}

#[test]
fn the_time_can_be_set_as_a_whole() {
    let (rtc, clock) = bench();
    set(&rtc, STATUS_B, B_SET | B_24_HOURS);
    clock.advance_ns(5 * NS);
    assert_eq!(get(&rtc, SECONDS), 0x09, "stands while it is set");
    for (index, value) in [(MONTH, 0x02), (DAY, 0x29), (YEAR, 0x24), (SECONDS, 0x58)] {
        set(&rtc, index, value);
    }
    set(&rtc, STATUS_B, B_24_HOURS);
    clock.advance_ns(2 * NS);
    assert_eq!(ALL.map(|i| get(&rtc, i)), [0x00, 0x09, 0x17, 0x05, 0x29, 0x02, 0x24, 0x20]);
    set(&rtc, MINUTES, 0x99);
    assert_eq!(get(&rtc, MINUTES), 0x09, "no such time");
    rtc.reset();
    assert_eq!(get(&rtc, DAY), 0x29, "the battery keeps it");
}

#[test]
fn memory_sizes() {
    let (rtc, _) = bench();
    let word = |low, high| u16::from_le_bytes([get(&rtc, low), get(&rtc, high)]);
    assert_eq!(word(0x15, 0x16), 640);
    assert_eq!(word(0x17, 0x18), 0xffff, "what does not fit is the largest");
    assert_eq!(word(0x30, 0x31), 0xffff);
    assert_eq!(word(0x34, 0x35), 0xbf00);
    assert_eq!([0x5b, 0x5c, 0x5d].map(|i| get(&rtc, i)), [0x00, 0x40, 0x00]);
}

#[test]
fn status_registers() {
    let (rtc, clock) = bench();
    assert_eq!(get(&rtc, STATUS_A), A_DEFAULT);
    clock.set_ns(NS - UPDATE_NS);
    assert_eq!(get(&rtc, STATUS_A), A_DEFAULT | A_UPDATE);
    assert_eq!(get(&rtc, STATUS_C), 0);
    clock.set_ns(NS);
    assert_eq!(get(&rtc, STATUS_A), A_DEFAULT);
    assert_eq!([get(&rtc, STATUS_C), get(&rtc, STATUS_C)], [C_UPDATED, 0]);
    assert_eq!(get(&rtc, STATUS_D), D_VALID);
}

#[test]
fn the_rest_is_memory() {
    let (rtc, _) = bench();
    set(&rtc, 0x0f, 0x0a);
    set(&rtc, 0x7f, 0x55);
    assert_eq!([get(&rtc, 0x0f), get(&rtc, 0x7f)], [0x0a, 0x55]);
    assert_eq!(rtc.read(INDEX, 1).to_u64(), 0xff);
}
