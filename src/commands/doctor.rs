//! `scpfs doctor`: says what a mount would find and do, without mounting.

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

/// How often the host is asked for one thing to learn how long that takes.
const N_QUESTIONS: u32 = 3;

/// Looks at this machine and at the host and says what was found; returns the status with which a
/// mount would end.
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
    let took = clock.tick().saturating_sub(since);
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

/// The shortest of some answers.
fn round_trip(remote: &dyn Remote, clock: &dyn Clock) -> remote::Result<Duration> {
    let mut shortest = Duration::MAX;
    for _ in 0..N_QUESTIONS {
        let since = clock.tick();
        remote.stat(&RemotePath::root())?;
        shortest = shortest.min(clock.tick().saturating_sub(since));
    }
    Ok(shortest)
}

/// What to do where a mount would end with that status.
fn advice(code: ExitCode) -> &'static str {
    match code {
        ExitCode::CannotConnect => {
            "A mount would fail. Does `ssh` with the same user, host and port get an answer? A firewall,\n\
             another port (-p), or ProxyJump in ~/.ssh/config may be what is missing."
        }
        ExitCode::HostKeyRefused => {
            "A mount would fail. Compare the host's key with what its administrator says, then let\n\
             `ssh` take it into known_hosts, or remove the old one with `ssh-keygen -R HOST`. Where an\n\
             earlier mount expects another key, -o accept_host_key= takes the new one."
        }
        ExitCode::AuthenticationFailed => {
            "A mount would fail. See whether `ssh` with the same user logs in, and by what; a key is\n\
             named with -o IdentityFile=FILE, and `ssh-add -l` lists what the agent has."
        }
        ExitCode::CannotMount => "A mount would fail on this machine, whatever the host.",
        _ => {
            "A mount would fail. Does the directory exist, and may the login user read it? If the host\n\
             has a shell of an unusual kind, -o dialect=scp-only may help; docs/hosts.md has more."
        }
    }
}
