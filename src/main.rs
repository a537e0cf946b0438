//! Parses, runs, prints what went wrong, chooses the exit status.

use std::error::Error;
use std::io::Write as _;
use std::process::ExitCode;

use scpfs::cli;
use scpfs::cli::Task;
use scpfs::commands::doctor;
use scpfs::commands::mounts;
use scpfs::commands::recover;
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

/// Prints an error and its causes on one line. What comes from a host is escaped where it enters a
/// message; names of this machine, which may be of other users' choice, are escaped here.
fn complain(error: &dyn Error) {
    let mut text = format!("scpfs: {error}");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let text = format!("{}\n", Printable(&text));
    // There is nobody to tell if the terminal is gone.
    drop(std::io::stderr().write_all(text.as_bytes()));
}
