//! Tests of the interval timer.

use super::super::host::fake::FakeClock;
use super::*;

/// The fewest nanoseconds in which this many ticks have passed.
fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(1_193_182) as u64
}

fn bench() -> (Pit, FakeClock) {
    let clock = FakeClock::default();
    (Pit::new(clock.shared()), clock)
}

fn out(pit: &Pit, offset: u64, value: u8) {
    pit.write(offset, Data::from_u64(value.into(), 1));
}

fn inb(pit: &Pit, offset: u64) -> u8 {
    pit.read(offset, 1).to_u64() as u8
}

fn count(pit: &Pit, channel: u64) -> u16 {
    out(pit, CONTROL, (channel as u8) << 6);
    u16::from_le_bytes([inb(pit, channel), inb(pit, channel)])
}

fn load(pit: &Pit, channel: u64, mode: u8, value: u16) {
    out(pit, CONTROL, (channel as u8) << 6 | 0x30 | mode << 1);
    let [low, high] = value.to_le_bytes();
    out(pit, channel, low);
    out(pit, channel, high);
}

/// As Linux's `quick_pit_calibrate` and `pit_calibrate_tsc`.
#[test]
fn calibration_by_channel_2() {
    let (pit, clock) = bench();
    out(&pit, PORT_B_OFFSET, 0x01);
    load(&pit, 2, 0, 0xffff);
    assert_eq!(count(&pit, 2), 0xffff);
    clock.set_ns(ns(0x1234));
    assert_eq!(count(&pit, 2), 0xffff - 0x1234);
    assert_eq!(inb(&pit, PORT_B_OFFSET) & PORT_B_OUTPUT, 0);
    clock.set_ns(ns(0xffff));
    assert_eq!(inb(&pit, PORT_B_OFFSET) & PORT_B_OUTPUT, PORT_B_OUTPUT);
    assert_eq!(count(&pit, 2), 0);
    clock.set_ns(ns(0x1_0000));
    assert_eq!(count(&pit, 2), 0xffff, "goes on below zero");
    assert_eq!(inb(&pit, PORT_B_OFFSET) & PORT_B_OUTPUT, PORT_B_OUTPUT);
}

#[test]
fn the_gate_holds_the_count() {
    let (pit, clock) = bench();
    load(&pit, 2, 0, 1000);
    clock.set_ns(ns(100));
    assert_eq!(count(&pit, 2), 1000, "the gate is low");
    out(&pit, PORT_B_OFFSET, 1);
    clock.advance_ns(ns(300));
    assert_eq!(count(&pit, 2), 700);
    out(&pit, PORT_B_OFFSET, 0);
    clock.advance_ns(ns(5000));
    assert_eq!(count(&pit, 2), 700);
    out(&pit, PORT_B_OFFSET, 1);
    clock.advance_ns(ns(200));
    assert_eq!(count(&pit, 2), 500);
}

#[test]
fn a_one_shot_waits_for_the_gate_and_starts_again_with_it() {
    let (pit, clock) = bench();
    load(&pit, 2, 1, 100);
    let output = || inb(&pit, PORT_B_OFFSET) & PORT_B_OUTPUT != 0;
    clock.advance_ns(ns(500));
    assert!(output());
    out(&pit, PORT_B_OFFSET, 1);
    assert!(!output());
    clock.advance_ns(ns(60));
    out(&pit, PORT_B_OFFSET, 0);
    out(&pit, PORT_B_OFFSET, 1);
    clock.advance_ns(ns(60));
    assert!(!output(), "started again");
    clock.advance_ns(ns(40));
    assert!(output());
}

#[test]
fn rate_generator_and_square_wave_repeat() {
    let (pit, clock) = bench();
    load(&pit, 0, 2, 100);
    load(&pit, 1, 3, 100);
    clock.set_ns(ns(230));
    assert_eq!(count(&pit, 0), 70);
    assert_eq!(count(&pit, 1), 40, "down by two");
    out(&pit, PORT_B_OFFSET, 1);
    clock.set_ns(0);
    load(&pit, 2, 3, 100);
    let wave = |ticks| {
        clock.set_ns(ns(ticks));
        inb(&pit, PORT_B_OFFSET) & PORT_B_OUTPUT != 0
    };
    assert_eq!(
        [0, 49, 50, 99, 100, 149, 150].map(wave),
        [true, true, false, false, true, true, false]
    );
}

#[test]
fn a_count_of_zero_is_the_largest() {
    let (pit, clock) = bench();
    load(&pit, 0, 2, 0);
    clock.set_ns(ns(1));
    assert_eq!(count(&pit, 0), 0xffff);
}

#[test]
fn a_latched_count_stands_until_read() {
    let (pit, clock) = bench();
    load(&pit, 0, 0, 1000);
    clock.set_ns(ns(10));
    out(&pit, CONTROL, 0);
    clock.set_ns(ns(20));
    out(&pit, CONTROL, 0);
    assert_eq!(u16::from_le_bytes([inb(&pit, 0), inb(&pit, 0)]), 990);
    assert_eq!(u16::from_le_bytes([inb(&pit, 0), inb(&pit, 0)]), 980, "not latched any more");
}

#[test]
fn read_back_latches_status_and_count() {
    let (pit, clock) = bench();
    out(&pit, CONTROL, 0x34);
    out(&pit, CONTROL, 0xe2);
    assert_eq!(inb(&pit, 0), 0xf4, "output high, no count yet, both bytes, mode 2");
    load(&pit, 0, 2, 500);
    clock.set_ns(ns(100));
    out(&pit, CONTROL, 0xc2);
    assert_eq!([inb(&pit, 0), inb(&pit, 0), inb(&pit, 0)], [0xb4, 0x90, 0x01]);
}

#[test]
fn decimal_counts() {
    let (pit, clock) = bench();
    out(&pit, CONTROL, 0x31);
    out(&pit, 0, 0x00);
    out(&pit, 0, 0x10);
    clock.set_ns(ns(1));
    assert_eq!(count(&pit, 0), 0x0999);
    clock.set_ns(ns(1001));
    assert_eq!(count(&pit, 0), 0x9999);
}

#[test]
fn single_byte_accesses_move_their_byte() {
    let (pit, _) = bench();
    out(&pit, CONTROL, 0x20);
    out(&pit, 0, 0x12);
    assert_eq!([inb(&pit, 0), inb(&pit, 0)], [0x12, 0x12]);
    out(&pit, CONTROL, 0x10);
    out(&pit, 0, 0x34);
    assert_eq!([inb(&pit, 0), inb(&pit, 0)], [0x34, 0x34]);
}

#[test]
fn refresh_toggles() {
    let (pit, clock) = bench();
    let before = inb(&pit, PORT_B_OFFSET) & PORT_B_REFRESH;
    clock.advance_ns(REFRESH_NS);
    assert_ne!(inb(&pit, PORT_B_OFFSET) & PORT_B_REFRESH, before);
}
