//! The probe: finds out what a host can do, over the first connection.

use std::sync::Arc;

use crate::clock::Clock;
use crate::path::Excerpt;
use crate::pool::OpenError;
use crate::remote::Facts;
use crate::remote::RootError;
use crate::remote::Settings;
use crate::remote::TimePrecision;
use crate::remote::login_relative;
use crate::remote::shown_directory;
use crate::shell::Pool;
use crate::shell::Shell;
use crate::shell::quote::Line;
use crate::shell::resident;
use crate::shell::resident::ResidentShell;
use crate::shell::status;
use crate::shell::tools::Helpers;
use crate::shell::tools::StampFormat;
use crate::shell::tools::Tools;
use crate::shell::tools::Userland;
use crate::ssh::Transport;

/// Why a host cannot be used by the shell dialect.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    ResidentShell(#[from] resident::Error),
    #[error(transparent)]
    Root(#[from] RootError),
    #[error(
        "the host has a shell, but no program that prints the attributes of files: neither `stat` of GNU, \
         BusyBox, toybox or BSD nor `ls --full-time` (system: {})",
        Excerpt(.0)
    )]
    UnknownUserland(Vec<u8>),
    #[error("unexpected answer of the host to the probe: {}", Excerpt(.0))]
    UnexpectedReply(Vec<u8>),
}

/// Connects to a host, probes it and returns the [`Shell`] dialect for it.
///
/// Blocks for some round trips, each for at most the timeout of `settings`.
pub fn probe(
    transport: Arc<dyn Transport>,
    settings: &Settings,
    clock: Arc<dyn Clock>,
) -> Result<Shell, Error> {
    let helpers = Helpers::for_probe();
    let mut resident = ResidentShell::open(&*transport, &helpers, settings.timeout, &*clock)?;
    let directory = login_relative(&settings.directory);
    let reply = resident.request(&Line::new("probe").arg(&directory).finish())?;
    let shown = || shown_directory(&directory);
    match reply.status {
        0 => {}
        status::ROOT_MISSING => return Err(RootError::Missing(shown()).into()),
        status::ROOT_NOT_A_DIRECTORY => return Err(RootError::NotADirectory(shown()).into()),
        status::ROOT_DENIED => return Err(RootError::Denied(shown()).into()),
        _ => return Err(Error::UnexpectedReply(reply.body)),
    }
    let found = parse(&reply.body).ok_or_else(|| Error::UnexpectedReply(reply.body.clone()))?;
    let Some(tools) = found.tools.clone() else {
        return Err(Error::UnknownUserland(found.system));
    };
    let facts = found.into_facts(&tools, resident.banner());
    if !tools.has_scp {
        log::warn!("the host has no usable scp: content is transferred by the tools of its shell");
    }
    let timeout = settings.timeout;
    let helpers = Helpers::for_tools(&tools);
    let opener_clock = Arc::clone(&clock);
    let opener = move || {
        ResidentShell::open(&*transport, &helpers, timeout, &*opener_clock).map_err(OpenError::from)
    };
    let pool = Pool::new(resident, Box::new(opener), settings.max_connections, clock);
    if settings.fails_fast {
        pool.fail_fast();
    }
    Ok(Shell::new(pool, tools, facts, settings.max_names))
}

#[derive(Debug, Default)]
struct Found {
    tools: Option<Tools>,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    system: Vec<u8>,
    /// The names of the shell and of the userland, for the summary.
    shell: Vec<u8>,
    family: Vec<u8>,
    can_exchange: bool,
    can_take_pieces: bool,
    root: Vec<u8>,
}

/// Parses the output of `probe` in `probe.sh`: a word and a value in each line, `root` last.
fn parse(body: &[u8]) -> Option<Found> {
    let mut found = Found::default();
    let mut rest = body;
    let number = |value: &[u8]| std::str::from_utf8(value).ok()?.parse::<u32>().ok();
    loop {
        if let Some(root) = rest.strip_prefix(b"root ") {
            let root = root.strip_suffix(b"\n")?;
            if root.first() != Some(&b'/') {
                return None;
            }
            // `/` becomes empty, so that joining paths has no special case.
            found.root = if root == b"/" {
                Vec::new()
            } else {
                root.to_vec()
            };
            return Some(found);
        }
        let (line, after) = rest.split_at_checked(memchr::memchr(b'\n', rest)?)?;
        rest = after.get(1..)?;
        let (word, value) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let value = value.get(1..)?;
        match word {
            b"preset" => found.tools = Tools::from_preset(value),
            b"uid" => found.uid = number(value)?,
            b"gid" => found.gid = number(value)?,
            b"groups" => {
                found.groups = value.split(|&b| b == b' ').filter_map(number).collect();
            }
            b"system" => found.system = value.to_vec(),
            b"shell" => found.shell = value.to_vec(),
            b"tools" => found.family = value.to_vec(),
            b"times" => {
                let tools = found.tools.as_mut()?;
                let mut words = value.split(|&b| b == b' ');
                tools.stamp_format = match words.next()? {
                    b"epoch" => StampFormat::Epoch,
                    _ => StampFormat::Iso,
                };
                if words.next() == Some(b"nanos") {
                    tools.time_precision = TimePrecision::Nanos;
                }
            }
            b"exchange" => found.can_exchange = true,
            b"pieces" => found.can_take_pieces = true,
            _ => {}
        }
    }
}

impl Found {
    fn into_facts(self, tools: &Tools, banner: &str) -> Facts {
        let summary = self.summary(tools, banner);
        Facts {
            summary,
            root: self.root,
            uid: self.uid,
            gid: self.gid,
            groups: self.groups,
            can_exchange: self.can_exchange,
            time_precision: tools.time_precision,
            can_take_pieces: self.can_take_pieces,
            can_take_holes: self.can_take_pieces && tools.has_truncate,
            sets_by_upload: None,
            uploads_in_place: false,
            can_fetch_many: tools.has_scp,
            can_list_trees: true,
            can_fetch_blocks: true,
        }
    }

    /// Returns a summary for the user: `BusyBox ash, no stat, scp: listing by ls+find, 1 RTT; Linux
    /// mips, server dropbear, ...`
    fn summary(&self, tools: &Tools, banner: &str) -> String {
        let shell = self.shell.rsplit(|&b| b == b'/').next();
        let shell = match shell.unwrap_or_default() {
            b"" => "sh".to_owned(),
            b"busybox" => "BusyBox ash".to_owned(),
            name => Excerpt(name).to_string(),
        };
        let family = if shell.starts_with("BusyBox") && self.family == b"BusyBox" {
            String::new()
        } else if self.family.is_empty() {
            match tools.userland {
                Userland::Gnu => ", GNU tools".to_owned(),
                Userland::Bsd => ", BSD tools".to_owned(),
                Userland::BusyBox | Userland::Ls => String::new(),
            }
        } else {
            format!(", {} tools", Excerpt(&self.family))
        };
        let stat = match tools.userland {
            Userland::Ls => "no stat",
            _ => "stat",
        };
        let scp = if tools.has_scp { "scp" } else { "no scp" };
        let listing = match tools.userland {
            Userland::Gnu => "find",
            Userland::BusyBox | Userland::Bsd => "stat+find",
            Userland::Ls => "ls+find",
        };
        format!(
            "{shell}{family}, {stat}, {scp}: listing by {listing}, 1 RTT; {}, server {}, login uid {}",
            Excerpt(&self.system),
            Excerpt(banner.trim().trim_start_matches("SSH-2.0-").as_bytes()),
            self.uid
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_may_contain_newlines() {
        let found = parse(b"uid 1\nscp yes\nroot /a\nuid 7\n").unwrap();
        assert_eq!((found.uid, found.root), (1, b"/a\nuid 7".to_vec()));
        assert_eq!(parse(b"root /\n").unwrap().root, b"");
        assert!(parse(b"uid 1\n").is_none());
        assert!(parse(b"uid x\nroot /\n").is_none());
        assert!(parse(b"root relative\n").is_none());
    }
}
