//! The tools of a host and the scripts for them; pure.

use crate::remote::TimePrecision;
use crate::shell::answer::time::civil_text;
use crate::shell::answer::time::compact_text;
use crate::shell::answer::time::epoch_text;
use crate::shell::answer::time::iso_text;
use crate::shell::status;
use crate::stat::FileId;
use crate::stat::Time;
use crate::stat::Version;

/// The helper functions; the head of each file describes them.
const COMMON: &str = include_str!("helpers.sh");
const CONTENT: &str = include_str!("helpers/content.sh");
const PROBE: &str = include_str!("helpers/probe.sh");
const STAT: &str = include_str!("helpers/stat.sh");

/// The userland of a host, which decides the output formats of its tools.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Userland {
    /// GNU coreutils and findutils.
    Gnu,
    /// BusyBox with `stat`; toybox has the same output.
    BusyBox,
    /// BSD and macOS.
    Bsd,
    /// BusyBox without `stat`.
    Ls,
}

impl Userland {
    const ALL: [Self; 4] = [Self::Gnu, Self::BusyBox, Self::Bsd, Self::Ls];

    /// Returns its name in `helpers.sh`.
    fn word(self) -> &'static str {
        match self {
            Self::Gnu => "gnu",
            Self::BusyBox => "busybox",
            Self::Bsd => "bsd",
            Self::Ls => "ls",
        }
    }

    /// Returns the helper functions that differ between userlands.
    fn scripts(self) -> Vec<&'static str> {
        match self {
            Self::Gnu => vec![STAT, include_str!("helpers/gnu.sh")],
            Self::BusyBox => vec![STAT, include_str!("helpers/busybox.sh")],
            Self::Bsd => vec![include_str!("helpers/bsd.sh")],
            Self::Ls => vec![include_str!("helpers/ls.sh")],
        }
    }

    /// Returns the text that the host prints for `version`, for the conflict check on the host.
    /// `None` for a version without an inode number, which the host cannot compare.
    pub fn version_text(self, version: &Version) -> Option<String> {
        let FileId { dev, ino } = version.id?;
        let Version { size, mtime, .. } = version;
        let time_text = |time: Time| match self {
            Self::Gnu | Self::Bsd => epoch_text(time),
            Self::BusyBox => civil_text(time),
            Self::Ls => {
                let text = civil_text(time);
                let text = text.trim_end_matches(" +0000");
                text.trim_end_matches(".000000000").to_owned()
            }
        };
        let text = match self {
            // `ls` does not print the device.
            Self::Ls => format!("{ino} {size} {}", time_text(*mtime)),
            _ => format!("{dev} {ino} {size} {}", time_text(*mtime)),
        };
        // If times are whole seconds, another client may write within the same second. Then the
        // ctime is compared as well.
        match version.ctime {
            Some(ctime) if mtime.nanos == 0 && ctime.nanos == 0 => {
                Some(format!("c {text} {}", time_text(ctime)))
            }
            _ => Some(text),
        }
    }
}

/// The format in which `touch` reads a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StampFormat {
    /// `-d @SECONDS`: GNU, BusyBox, toybox.
    Epoch,
    /// `-d YYYY-MM-DDThh:mm:ssZ`, of POSIX 2008: BSD, macOS.
    Iso,
    /// `-t YYYYMMDDhhmm.ss`, which every touch supports.
    Compact,
}

/// The tools of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    pub userland: Userland,
    /// Whether content is transferred by SCP.
    pub has_scp: bool,
    /// Whether open descriptors have names. Needed to append, so that the content goes into the
    /// very file that was compared.
    pub has_descriptors: bool,
    /// Whether a file can be extended without content.
    pub has_truncate: bool,
    pub stamp_format: StampFormat,
    pub time_precision: TimePrecision,
    /// The results of `probe.sh` as shell assignments, for further resident shells.
    pub preset: String,
}

impl Tools {
    /// Parses the assignments that `probe.sh` prints; `None` if they are invalid or name no
    /// userland.
    pub fn from_preset(words: &[u8]) -> Option<Self> {
        let words = std::str::from_utf8(words).ok()?;
        let value = |name: &str| {
            words
                .split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-=_ ".contains(c);
        if !words.chars().all(is_plain) {
            return None;
        }
        let userland = value("userland")?;
        Some(Self {
            userland: Userland::ALL.into_iter().find(|it| it.word() == userland)?,
            has_scp: value("has_scp")? == "y",
            has_descriptors: value("has_fd_dir")? == "y",
            has_truncate: value("has_truncate")? == "y",
            stamp_format: StampFormat::Compact,
            time_precision: TimePrecision::Seconds,
            preset: words.to_owned(),
        })
    }

    /// Returns the option of `touch` that sets `time`, as one word.
    pub fn stamp(&self, time: Time) -> String {
        let time = match self.time_precision {
            TimePrecision::Nanos => time,
            TimePrecision::Seconds => Time { nanos: 0, ..time },
        };
        match (self.stamp_format, self.time_precision) {
            // toybox adds the decimals, even to a negative number.
            (StampFormat::Epoch, TimePrecision::Nanos) if self.userland != Userland::Gnu => {
                format!("-d@{}.{:09}", time.secs, time.nanos)
            }
            (StampFormat::Epoch, TimePrecision::Nanos) => format!("-d@{}", epoch_text(time)),
            (StampFormat::Epoch, TimePrecision::Seconds) => format!("-d@{}", time.secs),
            (StampFormat::Iso, _) => format!("-d{}", iso_text(time)),
            (StampFormat::Compact, _) => format!("-t{}", compact_text(time)),
        }
    }
}

/// The scripts that define the helper functions of a resident shell, without comments.
///
/// They are sent in two parts, because dropbear grants a channel a window of 24 KiB, and more at
/// once would cost a round trip.
#[derive(Debug, Clone)]
pub struct Helpers {
    /// Sent when the shell starts.
    pub at_start: Vec<u8>,
    /// Sent together with the first request.
    pub with_first_request: Vec<u8>,
}

impl Helpers {
    /// Returns the scripts that probe a host, with those of all userlands.
    pub fn for_probe() -> Self {
        let mut rest = format!("{CONTENT}case $userland in\n");
        for userland in Userland::ALL {
            let scripts = userland.scripts().concat();
            rest += &format!("{})\n{scripts};;\n", userland.word());
        }
        rest += "esac\n";
        let statuses = status::assignments();
        Self {
            at_start: without_comments(&format!("{statuses}\nuserland=\n{COMMON}{PROBE}")),
            with_first_request: without_comments(&rest),
        }
    }

    /// Returns the scripts for a host with these tools.
    pub fn for_tools(tools: &Tools) -> Self {
        let (statuses, preset) = (status::assignments(), &tools.preset);
        let scripts = tools.userland.scripts().concat();
        Self {
            at_start: without_comments(&format!("{statuses}\n{preset}\n{COMMON}{scripts}")),
            with_first_request: without_comments(CONTENT),
        }
    }
}

/// Returns a script without its comment lines, empty lines and indentation.
fn without_comments(text: &str) -> Vec<u8> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches('\t');
        if !line.is_empty() && !line.starts_with('#') {
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools(stamp_format: StampFormat, time_precision: TimePrecision) -> Tools {
        let tools = Tools::from_preset(
            b"userland=ls mv_option=-fT ln_option= touch_option= has_truncate= has_scp= \
              byte_counter=dd has_fd_dir=y cp_attributes= ls_shows_acl=",
        )
        .unwrap();
        Tools {
            stamp_format,
            time_precision,
            ..tools
        }
    }

    #[test]
    fn invalid_presets_are_rejected() {
        let tools = Tools::from_preset(
            b"userland=gnu mv_option=-fT ln_option=-T touch_option=-h has_truncate=y has_scp=y \
              byte_counter=dd has_fd_dir=y cp_attributes=y ls_shows_acl=y",
        )
        .unwrap();
        assert_eq!((tools.userland, tools.has_scp), (Userland::Gnu, true));
        for bad in [
            &b"userland= has_truncate=y has_scp=y has_fd_dir=y"[..],
            b"userland=vms has_truncate=y has_scp=y has_fd_dir=y",
            b"userland=gnu",
            b"userland=gnu has_truncate=y has_scp=y has_fd_dir=y;reboot",
            b"userland=gnu has_truncate=y has_scp=y has_fd_dir=$(x)",
            b"",
        ] {
            assert_eq!(Tools::from_preset(bad), None);
        }
    }

    #[test]
    fn stamp_has_the_format_of_the_host() {
        use StampFormat::*;
        use TimePrecision::*;
        let time = Time {
            secs: 1_700_000_000,
            nanos: 250_000_000,
        };
        for (stamp_format, precision, word) in [
            (Epoch, Nanos, "-d@1700000000.250000000"),
            (Epoch, Seconds, "-d@1700000000"),
            (Iso, Nanos, "-d2023-11-14T22:13:20.250000000Z"),
            (Iso, Seconds, "-d2023-11-14T22:13:20Z"),
            (Compact, Seconds, "-t202311142213.20"),
        ] {
            assert_eq!(tools(stamp_format, precision).stamp(time), word);
        }
    }

    #[test]
    fn version_text_is_what_the_host_prints() {
        let time = |nanos| Time {
            secs: 1_700_000_000,
            nanos,
        };
        let version = |nanos| Version {
            size: 5,
            mtime: time(nanos),
            ctime: Some(time(0)),
            id: Some(FileId { dev: 1, ino: 2 }),
        };
        for (userland, nanos, text) in [
            (Userland::Gnu, 5, "1 2 5 1700000000.000000005"),
            (Userland::Bsd, 5, "1 2 5 1700000000.000000005"),
            (
                Userland::BusyBox,
                5,
                "1 2 5 2023-11-14 22:13:20.000000005 +0000",
            ),
            (Userland::Ls, 5, "2 5 2023-11-14 22:13:20.000000005"),
            (
                Userland::Ls,
                0,
                "c 2 5 2023-11-14 22:13:20 2023-11-14 22:13:20",
            ),
        ] {
            assert_eq!(userland.version_text(&version(nanos)).unwrap(), text);
        }
        let version = Version {
            id: None,
            ..version(0)
        };
        assert_eq!(Userland::Ls.version_text(&version), None);
    }

    /// dropbear grants a channel a window of 24 KiB; more would cost a round trip. What is left of
    /// it is for the request that the second part is sent with.
    #[test]
    fn helpers_fit_into_a_small_window() {
        const MAX_PART: usize = 20 << 10;
        let tools = tools(StampFormat::Epoch, TimePrecision::Seconds);
        for (what, helpers) in [
            ("first shell", Helpers::for_probe()),
            ("other shells", Helpers::for_tools(&tools)),
        ] {
            let (start, rest) = (helpers.at_start.len(), helpers.with_first_request.len());
            println!("{what}: {start} bytes at the start, {rest} with the first request");
            assert!(
                start < MAX_PART && rest < MAX_PART,
                "{what}: {start}, {rest}"
            );
        }
    }
}
