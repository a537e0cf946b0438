//! Parses the command line, runs the command, prints its error and returns its exit status.

use std::error::Error;
use std::io::Write as _;
use std::process;

use scpfs::cli;
use scpfs::cli::Task;
use scpfs::commands::doctor;
use scpfs::commands::mounts;
use scpfs::commands::recover;
use scpfs::error_chain;
use scpfs::exit_code::ExitCode;
use scpfs::mount;
use scpfs::mount::guard;
use scpfs::path::Printable;

fn main() -> process::ExitCode {
    match cli::read() {
        Ok(Task::Print(text)) => {
            // A reader that closes the pipe early is no failure.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::Success.into()
        }
        Ok(Task::Mount(config)) => match mount::run(&config, cli::find_program("fusermount3")) {
            Ok(code) => code,
            Err(error) => fail(&error, error.exit_code()),
        },
        Ok(Task::Status(task)) => finish(
            mounts::status(&task, &mut std::io::stdout()),
            mounts::Error::exit_code,
        ),
        Ok(Task::Umount(task)) => {
            let fusermount = cli::find_program("fusermount3");
            finish(
                mounts::umount(&task, fusermount.as_deref(), &mut std::io::stdout()),
                mounts::Error::exit_code,
            )
        }
        Ok(Task::Doctor(config)) => {
            let fusermount = cli::find_program("fusermount3");
            finish(
                doctor::run(&config, fusermount, &mut std::io::stdout()),
                |_| ExitCode::Failure,
            )
        }
        Ok(Task::Recover(task)) => finish(recover::run(&task, &mut std::io::stdout()), |_| {
            ExitCode::Failure
        }),
        Ok(Task::Guard(task)) => match guard::run(&task) {
            Ok(()) => ExitCode::Success.into(),
            Err(_) => ExitCode::Failure.into(),
        },
        Err(error) => fail(&error, ExitCode::Failure),
    }
}

/// Prints the error of a command, if it failed, and returns the exit status.
fn finish<E: Error>(
    result: Result<ExitCode, E>,
    exit_code: impl FnOnce(&E) -> ExitCode,
) -> process::ExitCode {
    match result {
        Ok(code) => code.into(),
        Err(error) => fail(&error, exit_code(&error)),
    }
}

fn fail(error: &dyn Error, code: ExitCode) -> process::ExitCode {
    print_error(error);
    code.into()
}

/// Prints an error and its causes on one line, with control characters escaped.
///
/// Text from the host is escaped where it enters an error. Local file names, which other users may
/// have chosen, are escaped here.
fn print_error(error: &dyn Error) {
    let text = format!("scpfs: {}", error_chain::with_causes(error));
    let text = format!("{}\n", Printable(&text));
    // An error that cannot be printed cannot be reported either.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
