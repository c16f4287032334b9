//! Tests of the IOAPIC, by the sections of its datasheet and by properties.

use proptest::prelude::*;

use super::*;

const MASK: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

fn u32_data(value: u32) -> Data {
    Data::from_u64(u64::from(value), 4)
}

fn select(chip: &mut Ioapic, register: u8) {
    assert!(chip.write(INDEX, u32_data(u32::from(register))).is_empty());
}

fn get(chip: &mut Ioapic, register: u8) -> u32 {
    select(chip, register);
    chip.read(WINDOW, 4).to_u64() as u32
}

fn set(chip: &mut Ioapic, register: u8, value: u32) -> Vec<IoapicAction> {
    select(chip, register);
    chip.write(WINDOW, u32_data(value))
}

fn entry(chip: &mut Ioapic, pin: u8) -> u64 {
    let low = u64::from(get(chip, 0x10 + 2 * pin));
    u64::from(get(chip, 0x11 + 2 * pin)) << 32 | low
}

/// Writes an entry as Linux does: the upper half first, the mask last.
fn set_entry(chip: &mut Ioapic, pin: u8, value: u64) -> Vec<IoapicAction> {
    let mut actions = set(chip, 0x11 + 2 * pin, (value >> 32) as u32);
    actions.extend(set(chip, 0x10 + 2 * pin, value as u32));
    actions
}

fn delivered(actions: &[IoapicAction]) -> Vec<Message> {
    let message = |action: &IoapicAction| match action {
        IoapicAction::Deliver { message, .. } => Some(*message),
        IoapicAction::RouteChanged { .. } => None,
    };
    actions.iter().filter_map(message).collect()
}

#[test]
fn identification_registers() {
    let mut chip = Ioapic::new();
    assert_eq!(get(&mut chip, 1), 0x0017_0020);
    set(&mut chip, 0, 0xffff_ffff);
    assert_eq!(get(&mut chip, 0), 0x0f00_0000);
    assert_eq!(get(&mut chip, 2), 0);
    set(&mut chip, 1, 0);
    assert_eq!(get(&mut chip, 1), 0x0017_0020, "the version is read-only");
    assert_eq!(entry(&mut chip, 23), MASK, "pins start masked");
    assert_eq!(get(&mut chip, 0x40), 0, "there is no pin 24");
    assert_eq!(chip.read(0x40, 4).to_u64(), 0);
}

#[test]
fn entries_read_back_but_for_reserved_and_read_only_bits() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 3, u64::MAX);
    assert_eq!(entry(&mut chip, 3), 0xfffe_0000_0001_afff);
}

#[test]
fn narrow_writes_reach_the_index_only() {
    let mut chip = Ioapic::new();
    chip.write(INDEX, Data::from_u64(0x10, 1));
    assert_eq!(chip.read(INDEX, 1).to_u64(), 0x10);
    chip.write(WINDOW, Data::from_u64(0, 2));
    assert_eq!(entry(&mut chip, 0), MASK);
}

#[test]
fn an_edge_is_delivered_each_time_the_line_rises() {
    let mut chip = Ioapic::new();
    let actions = set_entry(&mut chip, 4, 0x0200_0000_0000_0031);
    let message = Message { address: 0xfee0_2000, data: 0x31 };
    let route = Some(Route::from(message));
    assert_eq!(actions.last(), Some(&IoapicAction::RouteChanged { pin: 4, route }));
    assert_eq!(chip.set_line(4, true), [IoapicAction::Deliver { pin: 4, message }]);
    assert!(chip.set_line(4, true).is_empty(), "no edge");
    assert!(chip.set_line(4, false).is_empty());
    assert_eq!(delivered(&chip.set_line(4, true)), [message]);
    assert!(!chip.remote_irr(4));
}

#[test]
fn an_edge_on_a_masked_pin_is_lost() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 4, 0x31 | MASK);
    assert!(chip.set_line(4, true).is_empty());
    assert!(delivered(&set_entry(&mut chip, 4, 0x31)).is_empty());
    chip.set_line(4, false);
    assert_eq!(delivered(&chip.set_line(4, true)).len(), 1);
}

#[test]
fn a_level_is_delivered_once_until_its_eoi_and_again_while_the_line_is_high() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 9, 0x42 | LEVEL);
    let first = delivered(&chip.set_line(9, true));
    assert_eq!(first, [Message { address: 0xfee0_0000, data: 0xc042 }]);
    assert_eq!(entry(&mut chip, 9), 0x42 | LEVEL | REMOTE_IRR);
    assert!(chip.set_line(9, true).is_empty());
    assert!(chip.eoi(0x41).is_empty(), "another vector's");
    assert!(chip.remote_irr(9));
    assert_eq!(delivered(&chip.eoi(0x42)), first, "the line is still high");
    chip.set_line(9, false);
    assert!(chip.remote_irr(9), "only the EOI clears it");
    assert!(chip.write(EOI_REGISTER, u32_data(0x42)).is_empty());
    assert!(!chip.remote_irr(9));
}

#[test]
fn a_level_that_rises_while_masked_is_delivered_when_unmasked() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 9, 0x42 | LEVEL | MASK);
    assert!(chip.set_line(9, true).is_empty());
    let actions = set_entry(&mut chip, 9, 0x42 | LEVEL);
    assert!(matches!(
        actions[..],
        [IoapicAction::RouteChanged { .. }, IoapicAction::Deliver { .. }]
    ));
}

#[test]
fn a_mask_before_the_eoi_keeps_the_route() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 9, 0x42 | LEVEL);
    let route = chip.route(9);
    chip.set_line(9, true);
    assert!(set_entry(&mut chip, 9, 0x42 | LEVEL | MASK).is_empty());
    assert_eq!(chip.route(9), route);
    assert!(chip.eoi(0x42).is_empty(), "masked: not again");
    assert!(!chip.remote_irr(9));
    assert_eq!(delivered(&set_entry(&mut chip, 9, 0x42 | LEVEL)).len(), 1);
}

#[test]
fn a_switch_to_edge_clears_remote_irr() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 9, 0x42 | LEVEL);
    chip.set_line(9, true);
    set_entry(&mut chip, 9, 0x42 | MASK);
    assert!(!chip.remote_irr(9));
    assert_eq!(delivered(&set_entry(&mut chip, 9, 0x42 | LEVEL)).len(), 1, "line still high");
}

#[test]
fn delivery_and_destination_modes() {
    for (mode, sends) in [(0, true), (1, true), (2, true), (4, true), (5, true), (7, false)] {
        let mut chip = Ioapic::new();
        set_entry(&mut chip, 1, 0x30 | mode << 8 | 1 << 11 | LEVEL | 5 << 56);
        let messages = delivered(&chip.set_line(1, true));
        assert_eq!(messages.len(), usize::from(sends), "mode {mode}");
        let level = mode < 2;
        assert_eq!(chip.remote_irr(1), level, "mode {mode}");
        for message in messages {
            assert_eq!(message.address, 0xfee0_5004);
            assert_eq!(message.data & 0x7ff, 0x30 | (mode as u32) << 8);
            assert_eq!(message.is_level(), level);
        }
        assert_eq!(chip.route(1).is_some(), sends);
    }
}

#[test]
fn destinations_beyond_255() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 1, 0x30 | 0x01 << 49 | 0x02 << 56);
    let messages = delivered(&chip.set_line(1, true));
    assert_eq!(messages[0].destination(), 0x102);
    assert_eq!(messages[0].for_kvm().address, 0x100_fee0_2000);
}

#[test]
fn reset_takes_the_routes_away_and_leaves_the_lines() {
    let mut chip = Ioapic::new();
    set_entry(&mut chip, 9, 0x42 | LEVEL);
    chip.set_line(9, true);
    assert_eq!(chip.reset(), [IoapicAction::RouteChanged { pin: 9, route: None }]);
    assert!(!chip.remote_irr(9));
    assert_eq!(delivered(&set_entry(&mut chip, 9, 0x43 | LEVEL)).len(), 1);
}

#[derive(Debug, Clone)]
enum Op {
    Access { offset: u64, len: usize, value: Option<u64> },
    Entry { pin: u8, high: bool, value: u32 },
    Line { pin: usize, asserted: bool },
    Eoi(u8),
    Reset,
}

/// Few pins and vectors, so that they meet.
fn op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![Just(INDEX), Just(WINDOW), Just(EOI_REGISTER), any::<u64>()];
    let len = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let mode = prop_oneof![6 => Just(0u32), 1 => 1u32..8];
    let low = (0x30u32..0x34, mode, any::<bool>(), any::<bool>()).prop_map(
        |(vector, mode, level, masked)| {
            vector | mode << 8 | u32::from(level) << 15 | u32::from(masked) << 16
        },
    );
    prop_oneof![
        2 => (offset, len, any::<Option<u64>>())
            .prop_map(|(offset, len, value)| Op::Access { offset, len, value }),
        4 => (0u8..4, low).prop_map(|(pin, value)| Op::Entry { pin, high: false, value }),
        1 => (0u8..30, any::<u32>()).prop_map(|(pin, value)| Op::Entry { pin, high: true, value }),
        8 => (0usize..4, any::<bool>()).prop_map(|(pin, asserted)| Op::Line { pin, asserted }),
        1 => any::<(usize, bool)>().prop_map(|(pin, asserted)| Op::Line { pin, asserted }),
        6 => (0x30u8..0x34).prop_map(Op::Eoi),
        1 => Just(Op::Reset),
    ]
}

fn apply(chip: &mut Ioapic, op: &Op) -> Vec<IoapicAction> {
    match *op {
        Op::Access { offset, len, value: None } => {
            chip.read(offset, len);
            Vec::new()
        }
        Op::Access { offset, len, value: Some(value) } => {
            chip.write(offset, Data::from_u64(value, len))
        }
        Op::Entry { pin, high, value } => set(chip, 0x10 + 2 * pin + u8::from(high), value),
        Op::Line { pin, asserted } => chip.set_line(pin, asserted),
        Op::Eoi(vector) => chip.eoi(vector),
        Op::Reset => chip.reset(),
    }
}

proptest! {
    /// Whatever happens: a level that can be delivered has been; remote IRR is set from the
    /// delivery to the EOI of its vector, or until the pin ceases to be level-triggered; a message
    /// goes only where the last announced route says.
    #[test]
    fn levels_are_never_forgotten(ops in prop::collection::vec(op(), 0..200)) {
        let mut chip = Ioapic::new();
        let mut routes = [None; PINS];
        let mut waiting = [false; PINS];
        let mut lines = [false; PINS];
        for op in &ops {
            let before: Vec<u64> = (0..PINS as u8).map(|pin| entry(&mut chip.clone(), pin)).collect();
            let ended = match *op {
                Op::Eoi(vector) => Some(vector),
                Op::Access { offset: EOI_REGISTER, len: 4 | 8, value: Some(value) } => {
                    Some(value as u8)
                }
                _ => None,
            };
            for pin in 0..PINS {
                waiting[pin] &= ended != Some(before[pin] as u8);
            }
            if let Op::Line { pin, asserted } = *op && pin < PINS {
                lines[pin] = asserted;
            }
            for action in apply(&mut chip, op) {
                match action {
                    IoapicAction::RouteChanged { pin, route } => routes[pin] = route,
                    IoapicAction::Deliver { pin, message } => {
                        prop_assert_eq!(routes[pin], Some(Route::from(message)));
                        prop_assert!(!waiting[pin], "delivered twice without an EOI");
                        waiting[pin] = message.is_level();
                    }
                }
            }
            for pin in 0..PINS {
                let entry = entry(&mut chip.clone(), pin as u8);
                let level = entry & LEVEL != 0 && entry >> 8 & 7 < 2;
                waiting[pin] &= level;
                prop_assert_eq!(chip.remote_irr(pin), waiting[pin]);
                prop_assert_eq!(entry & REMOTE_IRR != 0, waiting[pin]);
                if lines[pin] && level && entry & MASK == 0 {
                    prop_assert!(waiting[pin], "pin {} is forgotten", pin);
                }
            }
        }
    }
}
