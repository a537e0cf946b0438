//! `scpfs doctor`: reports what a mount would find and can do, without mounting.

use std::io;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::error_chain;
use crate::exit_code::ExitCode;
use crate::mount;
use crate::mount::attach;
use crate::mount::logging;
use crate::mount::pinned;
use crate::mount::terminal::Terminal;
use crate::path::Escaped;
use crate::path::RemotePath;
use crate::remote;
use crate::remote::Remote;
use crate::remote::ability::Extent;

/// The number of requests that measure the round trip.
const N_MEASUREMENTS: u32 = 3;

/// Checks this machine, the host and the cache, and prints the result.
///
/// Returns the exit status that a mount would have: an unsuitable host is no `Err`. Blocks; may ask
/// for a password.
///
/// # Errors
/// The output cannot be written.
pub fn run(
    config: &Config,
    fusermount: Option<PathBuf>,
    out: &mut dyn Write,
) -> io::Result<ExitCode> {
    logging::init(&config.logging);
    mount::hide_memory();
    writeln!(out, "{}", config.source)?;
    let mut code = ExitCode::Success;
    match attach::check_machine(config.mount.uid == 0, fusermount.as_deref()) {
        Ok(()) => row(out, "this machine", "can mount")?,
        Err(error) => {
            row(
                out,
                "this machine",
                &format!("cannot mount: {}", error_chain::with_causes(&error)),
            )?;
            code = mount::Error::from(error).exit_code();
        }
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let since = clock.tick();
    let connected = match mount::connect(config, Arc::new(Terminal::new()), &clock, None) {
        Ok(connected) => connected,
        Err(error) => {
            row(
                out,
                "host",
                &format!("cannot be mounted: {}", error_chain::with_causes(&error)),
            )?;
            writeln!(out, "\n{}", advice(error.exit_code()))?;
            return Ok(error.exit_code());
        }
    };
    let took = clock.tick().since(since);
    let cache = pinned::check(config, &connected);
    let (transport, remote) = connected;
    let settings = transport.settings();
    row(
        out,
        "connection",
        &format!(
            "logged in to {} port {} as {} after {}",
            settings.hostname,
            settings.port,
            settings.user,
            millis(took)
        ),
    )?;
    match cache {
        Ok(()) => row(out, "cache", "can be used for this host")?,
        Err(error) => {
            let why = error_chain::with_causes(&error);
            row(out, "cache", &format!("cannot be used: {why}"))?;
            code = error.exit_code();
        }
    }
    let facts = remote.facts();
    row(out, "host", &facts.summary)?;
    let root = if facts.root.is_empty() {
        b"/"
    } else {
        &facts.root[..]
    };
    row(out, "directory", &Escaped(root).to_string())?;
    match round_trip(&*remote, &*clock) {
        Ok(trip) => row(out, "round trip", &millis(trip))?,
        Err(error) => {
            row(
                out,
                "round trip",
                &format!(
                    "the directory cannot be read: {}",
                    error_chain::with_causes(&error)
                ),
            )?;
            code = ExitCode::HostUnsuitable;
        }
    }
    writeln!(out, "\n  operation                  extent")?;
    for ability in remote.abilities() {
        let extent = match ability.extent {
            Extent::Full => "full".to_owned(),
            Extent::Limited(how) => format!("limited: {how}"),
            Extent::Impossible(why) => format!("impossible: {why}"),
        };
        writeln!(out, "  {:<26} {extent}", ability.what)?;
    }
    remote.close();
    if code == ExitCode::Success {
        writeln!(out, "\nA mount would work.")?;
    } else {
        writeln!(out, "\n{}", advice(code))?;
    }
    Ok(code)
}

fn row(out: &mut dyn Write, name: &str, text: &str) -> io::Result<()> {
    writeln!(out, "  {name:<13} {text}")
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Measures the round trip: returns the shortest of [`N_MEASUREMENTS`].
fn round_trip(remote: &dyn Remote, clock: &dyn Clock) -> remote::Result<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..N_MEASUREMENTS {
        let since = clock.tick();
        remote.stat(&RemotePath::root())?;
        shortest = shortest.min(clock.tick().since(since));
    }
    Ok(shortest)
}

/// Returns what the user can do about a mount that would fail with `code`.
fn advice(code: ExitCode) -> &'static str {
    match code {
        ExitCode::CannotConnect => {
            "A mount would fail. Check whether `ssh` with the same user, host and port connects. If not,\n\
             check the port (-p), firewalls, and whether ~/.ssh/config needs a ProxyJump."
        }
        ExitCode::HostKeyRefused => {
            "A mount would fail. Compare the offered host key with the one that the administrator of the\n\
             host gives. If it is right, add it to known_hosts with `ssh`, after removing an old one with\n\
             `ssh-keygen -R HOST`. If an earlier mount expects another key, pass -o accept_host_key=."
        }
        ExitCode::AuthenticationFailed => {
            "A mount would fail. Check whether `ssh -v` with the same user logs in, and with which\n\
             method. -o IdentityFile=FILE selects a key; `ssh-add -l` lists the keys of the agent."
        }
        ExitCode::CannotMount => {
            "A mount would fail because of this machine, not because of the host."
        }
        _ => {
            "A mount would fail. Check that the directory exists and that the login user may read it. If\n\
             the shell of the host is unusual, try -o dialect=scp-only; see docs/hosts.md."
        }
    }
}
