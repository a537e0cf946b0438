//! Parses, runs, prints what went wrong, chooses the exit status.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use scpfs::cli;
use scpfs::cli::Task;
use scpfs::commands::doctor;
use scpfs::commands::mounts;
use scpfs::commands::recover;
use scpfs::error_chain;
use scpfs::mount;
use scpfs::mount::guard;
use scpfs::path::Printable;

fn main() -> ExitCode {
    match cli::read() {
        Ok(Task::Print(text)) => {
            // A closed pipe is the reader's choice.
            drop(std::io::stdout().write_all(text.as_bytes()));
            ExitCode::SUCCESS
        }
        Ok(Task::Mount(config)) => match mount::run(&config, cli::find_program("fusermount3")) {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                complain(&error);
                ExitCode::from(error.exit_code())
            }
        },
        Ok(Task::Status(task)) => ended(mounts::status(&task, &mut std::io::stdout())),
        Ok(Task::Umount(task)) => {
            let fusermount = cli::find_program("fusermount3");
            let fusermount = fusermount.as_deref();
            ended(mounts::umount(&task, fusermount, &mut std::io::stdout()))
        }
        Ok(Task::Doctor(config)) => {
            let fusermount = cli::find_program("fusermount3");
            match doctor::run(&config, fusermount, &mut std::io::stdout()) {
                Ok(status) => ExitCode::from(status),
                Err(error) => {
                    complain(&error);
                    ExitCode::FAILURE
                }
            }
        }
        Ok(Task::Recover(task)) => match recover::run(&task, &mut std::io::stdout()) {
            Ok(status) => ExitCode::from(status),
            Err(error) => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
        Ok(Task::Guard(task)) => match guard::run(&task) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(error) => {
            complain(&error);
            ExitCode::from(1)
        }
    }
}

fn ended(result: Result<u8, mounts::Error>) -> ExitCode {
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            complain(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints an error and its causes on one line.
///
/// Escapes control characters: bytes from a host are escaped when they enter a message, but names on
/// this machine may be chosen by other users.
fn complain(error: &dyn Error) {
    let text = format!("scpfs: {}", error_chain::with_causes(error));
    let text = format!("{}\n", Printable(&text));
    // The terminal may be gone; there is no other place to report to.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
