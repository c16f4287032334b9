//! The executable as `make bench` runs it: peers, faults, report and all.
#![expect(
    clippy::unwrap_used,
    reason = "clippy lets tests unwrap, but not the helpers beside them"
)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

const PROGRAM: &str = env!("CARGO_BIN_EXE_giantvm-bench");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).output().unwrap()
}

fn report_path(test: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test).join("bench.json")
}

fn rows(path: &PathBuf) -> Vec<serde_json::Value> {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_quick_run_measures_every_floor_in_every_variant() {
    let path = report_path("quick");
    let _ = fs::remove_file(&path);
    let output = run(&["--quick", "--output", path.to_str().unwrap()]);
    let errors = String::from_utf8_lossy(&output.stderr);
    if errors.contains("opening a userfaultfd failed") {
        println!("skipped: userfaultfd is forbidden here: {errors}");
        return;
    }
    assert!(output.status.success(), "{errors}");

    let rows = rows(&path);
    let variants = |name: &str| {
        let of_name = rows.iter().filter(|row| row["name"] == name);
        of_name.map(|row| row["variant"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let transports_and_wakes = ["tcp/blocking", "tcp/busy", "unix/blocking", "unix/busy"];
    for name in [
        "socket_rtt",
        "read_fault_floor",
        "write_fault_floor",
        "upgrade_fault_floor",
        "ping_pong_floor",
    ] {
        assert_eq!(variants(name), transports_and_wakes, "{name}");
    }
    assert_eq!(variants("stream"), ["tcp", "unix"]);
    for kind in ["missing", "minor", "wp"] {
        assert!(variants("raw_fault").contains(&format!("{kind}/one-core")));
    }
    if errors.contains("SKIPPED") {
        // Without /dev/kvm or the guest, which the command has said.
        println!("SKIPPED: benchmarks of virtual machines: {errors}");
    } else {
        let transports_and_waits = ["tcp/running", "tcp/halted", "unix/running", "unix/halted"];
        assert_eq!(variants("ipi_local"), ["running", "halted"]);
        assert_eq!(variants("ipi_remote"), transports_and_waits);
        for name in ["guest_read_fault", "guest_write_fault", "pio_remote", "mmio_remote"] {
            assert_eq!(variants(name), ["tcp", "unix"], "{name}");
        }
        assert_eq!(variants("pio_local"), [""]);
        assert_eq!(variants("compute_scaling").len(), 4);
        let is_guests =
            |name: &str| name.contains("guest_") || name.contains("io_") || name.contains("ipi_");
        for row in rows.iter().filter(|row| row["name"].as_str().is_some_and(is_guests)) {
            assert!(row["floor"].as_f64().is_some_and(|floor| floor > 0.0), "{row}");
        }
    }
    for row in &rows {
        assert!(row["value"].as_f64().unwrap() > 0.0, "{row}");
    }
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(table.lines().count(), rows.len() + 1, "a line for each row:\n{table}");
}

#[test]
fn a_second_run_replaces_its_own_rows_and_keeps_the_others() {
    let path = report_path("merge");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let row = |name: &str, variant: &str| serde_json::json!({ "name": name, "variant": variant, "unit": "us", "value": -1.0 });
    let old = serde_json::json!([row("kept", "tcp/busy"), row("socket_rtt", "tcp/busy")]);
    fs::write(&path, old.to_string()).unwrap();
    let output = run(&["--quick", "--bench", "socket_rtt", "--output", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows = rows(&path);
    assert_eq!(rows.len(), 5);
    assert_eq!((rows[0]["name"].as_str(), rows[0]["value"].as_f64()), (Some("kept"), Some(-1.0)));
    assert!(rows[1..].iter().all(|row| row["value"].as_f64().unwrap() > 0.0));
}

#[test]
fn the_list_names_all_and_unknown_names_are_refused() {
    let list = String::from_utf8(run(&["--list"]).stdout).unwrap();
    assert!(list.lines().any(|line| line.starts_with("ping_pong_floor")), "{list}");
    assert!(!list.contains("__floor-peer"), "internal: {list}");
    let refused = run(&["--bench", "nonsense"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nonsense"));
}

#[test]
fn a_peer_without_its_arguments_says_that_it_is_internal() {
    let refused = run(&["__floor-peer", "serve"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("internal"));
}
