//! Tests of the serial port, as drivers use it.

use super::super::host::fake::Collect;
use super::*;

struct Bench {
    serial: Serial,
    line: Collect<bool>,
    output: Collect<u8>,
}

impl Bench {
    fn new() -> Self {
        let (line, output) = (Collect::default(), Collect::default());
        let serial = Serial::new("com1", Arc::new(line.one()), Arc::new(output.many()));
        Self { serial, line, output }
    }

    fn write(&self, register: u64, value: u8) {
        self.serial.write(register, Data::from_u64(value.into(), 1));
    }

    fn read(&self, register: u64) -> u8 {
        self.serial.read(register, 1).to_u64() as u8
    }
}

#[test]
fn output_leaves_at_once_and_in_order() {
    let bench = Bench::new();
    for byte in b"hello" {
        assert_eq!(bench.read(5) & 0x60, 0x60, "always room");
        bench.write(0, *byte);
    }
    assert_eq!(bench.output.take(), b"hello");
    assert_eq!(bench.line.take(), [], "no interrupt that was not enabled");
}

#[test]
fn the_divisor_is_not_output() {
    let bench = Bench::new();
    bench.write(3, 0x83);
    bench.write(0, 1);
    bench.write(1, 0);
    bench.write(3, 0x03);
    assert_eq!(bench.output.take(), b"");
    assert_eq!(bench.read(1), 0, "the enables are untouched");
}

#[test]
fn received_data_holds_the_line_until_all_is_read() {
    let bench = Bench::new();
    bench.write(1, IER_RECEIVED);
    assert_eq!(bench.serial.enqueue(b"ab"), 2);
    assert_eq!(bench.line.take(), [true]);
    assert_eq!(bench.read(2), IIR_RECEIVED);
    assert_eq!(bench.read(0), b'a');
    assert_eq!(bench.read(2), IIR_RECEIVED, "there is more");
    assert_eq!(bench.line.take(), []);
    assert_eq!(bench.read(0), b'b');
    assert_eq!((bench.line.take(), bench.read(2)), (vec![false], IIR_NONE));
    assert_eq!(bench.read(5) & 1, 0);
}

#[test]
fn data_that_came_before_the_enable_interrupts_then() {
    let bench = Bench::new();
    bench.serial.enqueue(b"x");
    assert_eq!(bench.line.take(), []);
    bench.write(1, IER_RECEIVED);
    assert_eq!(bench.line.take(), [true]);
    bench.write(1, 0);
    assert_eq!(bench.line.take(), [false]);
}

#[test]
fn an_empty_transmitter_interrupts_after_each_byte_and_is_taken_back_by_its_identification() {
    let bench = Bench::new();
    bench.write(1, IER_THR_EMPTY);
    assert_eq!(bench.line.take(), [true]);
    assert_eq!(bench.read(2), IIR_THR_EMPTY);
    assert_eq!(bench.line.take(), [false]);
    assert_eq!(bench.read(2), IIR_NONE);
    bench.write(0, b'x');
    assert_eq!(bench.line.take(), [true]);
}

#[test]
fn an_empty_transmitter_waits_behind_received_data() {
    let bench = Bench::new();
    bench.write(1, IER_RECEIVED | IER_THR_EMPTY);
    bench.serial.enqueue(b"a");
    assert_eq!(bench.read(2), IIR_RECEIVED);
    assert_eq!(bench.read(0), b'a');
    bench.write(7, 0);
    assert_eq!(bench.read(2), IIR_THR_EMPTY, "not forgotten");
    assert_eq!(bench.read(2), IIR_NONE);
    assert_eq!(bench.line.take().last(), Some(&false));
}

#[test]
fn input_beyond_the_fifo_waits_and_beyond_the_queue_is_refused() {
    let bench = Bench::new();
    let input: Vec<u8> = (0..INPUT_MAX + 100).map(|i| i as u8).collect();
    let first = bench.serial.enqueue(&input);
    assert_eq!(first, INPUT_MAX);
    let rest = bench.serial.enqueue(&input[first..]);
    assert_eq!(rest, 64, "as much as the FIFO took from the queue");
    assert_eq!(bench.serial.enqueue(b"no"), 0);
    for expected in &input[..first + rest] {
        assert_eq!(bench.read(5) & 1, 1);
        assert_eq!(bench.read(0), *expected);
    }
    assert_eq!(bench.read(5) & 1, 0);
}

#[test]
fn loopback_returns_what_is_written_and_keeps_input_waiting() {
    let bench = Bench::new();
    bench.write(4, 0x1e);
    bench.serial.enqueue(b"x");
    bench.write(0, b'l');
    assert_eq!(bench.read(0), b'l');
    assert_eq!(bench.read(5) & 1, 0);
    assert_eq!(bench.read(6) & 0xf0, 0xd0, "modem inputs follow the outputs");
    bench.write(4, 0x0b);
    assert_eq!(bench.read(0), b'x');
    assert_eq!(bench.output.take(), b"");
}

#[test]
fn reset_lets_the_line_go() {
    let bench = Bench::new();
    bench.write(1, IER_RECEIVED);
    bench.serial.enqueue(b"x");
    bench.serial.reset();
    assert_eq!(bench.line.take(), [true, false]);
    assert_eq!((bench.read(1), bench.read(5) & 1), (0, 0));
}

#[test]
fn input_and_reads_from_two_threads_leave_the_line_as_the_state_wants_it() {
    let last = Arc::new(AtomicBool::new(false));
    let level = Arc::clone(&last);
    let line = move |high| level.store(high, Ordering::SeqCst);
    let serial = Serial::new("com1", Arc::new(line), Arc::new(|_: &[u8]| {}));
    serial.write(1, Data::from_u64(IER_RECEIVED.into(), 1));
    let mut read = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| (0..10_000).for_each(|_| assert_eq!(serial.enqueue(b"x"), 1)));
        while read < 10_000 {
            read +=
                usize::from(serial.read(5, 1).to_u64() & 1 != 0 && serial.read(0, 1).len() == 1);
        }
    });
    assert!(!last.load(Ordering::SeqCst), "all is read");
    serial.enqueue(b"y");
    assert!(last.load(Ordering::SeqCst));
}
