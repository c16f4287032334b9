//! `giantvm-bench`: see `--help`.

use std::env;
use std::error::Error;
use std::process::ExitCode;

use giantvm_bench::error::BenchError;
use giantvm_bench::floor::{guest as floor_guest, peer};
use giantvm_bench::options::{self, Command, HELP, Options};
use giantvm_bench::ours::{guest, node};
use giantvm_bench::report::Report;
use giantvm_bench::suite::{self, BENCHMARKS};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let result = match args.split_first() {
        Some((first, rest)) if first == peer::SUBCOMMAND => peer::main(rest),
        Some((first, rest)) if first == node::SUBCOMMAND => node::main(rest),
        Some((first, rest)) if first == floor_guest::program::SUBCOMMAND => {
            floor_guest::program::main(rest)
        }
        Some((first, rest)) if first == guest::SUBCOMMAND => guest::main(rest),
        _ => options::parse(args).and_then(obey),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprint!("giantvm-bench: {error}");
    let mut cause = error.source();
    while let Some(error) = cause {
        eprint!(": {error}");
        cause = error.source();
    }
    eprintln!();
    ExitCode::FAILURE
}

fn obey(command: Command) -> Result<(), BenchError> {
    match command {
        Command::Help => print!("{HELP}"),
        Command::List => {
            for benchmark in BENCHMARKS {
                println!("{:20}  {}", benchmark.name, benchmark.about);
            }
        }
        Command::Run(options) => return run(&options),
    }
    Ok(())
}

fn run(options: &Options) -> Result<(), BenchError> {
    if let Some(name) = suite::unknown(options).first() {
        return Err(BenchError::Usage(format!("there is no benchmark {name:?} (see `--list`)")));
    }
    // Before hours are spent on what could then not be written.
    let mut all = Report::load(&options.output)?;
    let mut now = Report::default();
    for benchmark in BENCHMARKS.iter().filter(|benchmark| options.wants(benchmark.name)) {
        eprintln!("{}: {}", benchmark.name, benchmark.about);
        let mut report = Report::default();
        (benchmark.run)(&mut report, options)?;
        all.merge(report.clone());
        all.save(&options.output)?;
        now.merge(report);
    }
    print!("{now}");
    Ok(())
}
