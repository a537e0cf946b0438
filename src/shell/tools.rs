//! What the tools of a host are and can do; pure.

use crate::remote::TimePrecision;
use crate::shell::answer::time::civil_text;
use crate::shell::answer::time::compact_text;
use crate::shell::answer::time::epoch_text;
use crate::shell::answer::time::iso_text;
use crate::shell::status;
use crate::stat::FileId;
use crate::stat::Time;
use crate::stat::Version;

/// The helper functions, see the heads of these files.
const COMMON: &str = include_str!("helpers.sh");
const CONTENT: &str = include_str!("helpers/content.sh");
const PROBE: &str = include_str!("helpers/probe.sh");
const STAT: &str = include_str!("helpers/stat.sh");

/// How the tools of a host print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// GNU coreutils and findutils.
    Gnu,
    /// BusyBox with `stat`; toybox prints the same.
    BusyBox,
    /// BSD and macOS.
    Bsd,
    /// BusyBox without `stat`.
    Ls,
}

impl Flavour {
    const ALL: [Self; 4] = [Self::Gnu, Self::BusyBox, Self::Bsd, Self::Ls];

    /// Returns the word for it in `helpers.sh`.
    fn word(self) -> &'static str {
        match self {
            Self::Gnu => "gnu",
            Self::BusyBox => "busybox",
            Self::Bsd => "bsd",
            Self::Ls => "ls",
        }
    }

    /// The helper functions that differ between userlands.
    fn scripts(self) -> Vec<&'static str> {
        match self {
            Self::Gnu => vec![STAT, include_str!("helpers/gnu.sh")],
            Self::BusyBox => vec![STAT, include_str!("helpers/busybox.sh")],
            Self::Bsd => vec![include_str!("helpers/bsd.sh")],
            Self::Ls => vec![include_str!("helpers/ls.sh")],
        }
    }

    /// Returns how the host would print `version`, for the comparison on the host. `None` for
    /// a version without an inode, which cannot be compared there.
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
            // No program tells the device there.
            Self::Ls => format!("{ino} {size} {}", time_text(*mtime)),
            _ => format!("{dev} {ino} {size} {}", time_text(*mtime)),
        };
        // Where times are whole seconds, a second writer may leave the same one; then the time
        // of the last change of any kind has to tell as well.
        match version.ctime {
            Some(ctime) if mtime.nanos == 0 && ctime.nanos == 0 => {
                Some(format!("c {text} {}", time_text(ctime)))
            }
            _ => Some(text),
        }
    }
}

/// How `touch` is told of a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stamps {
    /// `-d @SECONDS`: GNU, BusyBox, toybox.
    Epoch,
    /// `-d YYYY-MM-DDThh:mm:ssZ`, of POSIX 2008: BSD, macOS.
    Iso,
    /// `-t YYYYMMDDhhmm.ss`, which every touch knows.
    Compact,
}

/// What the tools of one host are and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tools {
    pub flavour: Flavour,
    /// Whether content comes and goes by SCP.
    pub has_scp: bool,
    /// Whether descriptors have names, so that content can be added to a file that is proved to be
    /// the expected one.
    pub has_descriptors: bool,
    /// Whether a file can be given a size without content.
    pub has_truncate: bool,
    pub stamps: Stamps,
    pub time_precision: TimePrecision,
    /// The words of `preset`: what `probe.sh` has found out, as assignments for further lanes.
    pub preset: String,
}

impl Tools {
    /// Takes the words that `probe.sh` prints as `preset`; `None` if there is no flavour.
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
        let flavour = value("userland")?;
        Some(Self {
            flavour: Flavour::ALL.into_iter().find(|it| it.word() == flavour)?,
            has_scp: value("has_scp")? == "y",
            has_descriptors: value("has_fd_dir")? == "y",
            has_truncate: value("has_truncate")? == "y",
            stamps: Stamps::Compact,
            time_precision: TimePrecision::Seconds,
            preset: words.to_owned(),
        })
    }

    /// Returns what `touch` is to be told to set a time, as one word.
    pub fn stamp(&self, time: Time) -> String {
        let time = match self.time_precision {
            TimePrecision::Nanos => time,
            TimePrecision::Seconds => Time { nanos: 0, ..time },
        };
        match (self.stamps, self.time_precision) {
            // toybox adds the decimals, to a negative number as well.
            (Stamps::Epoch, TimePrecision::Nanos) if self.flavour != Flavour::Gnu => {
                format!("-d@{}.{:09}", time.secs, time.nanos)
            }
            (Stamps::Epoch, TimePrecision::Nanos) => format!("-d@{}", epoch_text(time)),
            (Stamps::Epoch, TimePrecision::Seconds) => format!("-d@{}", time.secs),
            (Stamps::Iso, _) => format!("-d{}", iso_text(time)),
            (Stamps::Compact, _) => format!("-t{}", compact_text(time)),
        }
    }
}

/// The scripts that define the helper functions of a resident shell, without comments.
///
/// They are sent in two parts, because dropbear grants a channel a window of 24 KiB: more at once
/// would cost a round trip.
#[derive(Debug, Clone)]
pub struct Helpers {
    /// The part that is sent when the shell starts.
    pub at_start: Vec<u8>,
    /// The part that is sent together with the first request.
    pub with_first_request: Vec<u8>,
}

impl Helpers {
    /// Returns the scripts that probe a host, and those of every userland.
    pub fn for_probe() -> Self {
        let mut rest = format!("{CONTENT}case $userland in\n");
        for flavour in Flavour::ALL {
            let scripts = flavour.scripts().concat();
            rest += &format!("{})\n{scripts};;\n", flavour.word());
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
        let scripts = tools.flavour.scripts().concat();
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

    fn tools(stamps: Stamps, time_precision: TimePrecision) -> Tools {
        let tools = Tools::from_preset(
            b"userland=ls mv_option=-fT ln_option= touch_option= has_truncate= has_scp= \
              byte_counter=dd has_fd_dir=y cp_attributes= ls_shows_acl=",
        )
        .unwrap();
        Tools {
            stamps,
            time_precision,
            ..tools
        }
    }

    #[test]
    fn what_a_host_says_of_its_tools_is_checked() {
        let tools = Tools::from_preset(
            b"userland=gnu mv_option=-fT ln_option=-T touch_option=-h has_truncate=y has_scp=y \
              byte_counter=dd has_fd_dir=y cp_attributes=y ls_shows_acl=y",
        )
        .unwrap();
        assert_eq!((tools.flavour, tools.has_scp), (Flavour::Gnu, true));
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
    fn touch_is_told_in_its_own_words() {
        use Stamps::*;
        use TimePrecision::*;
        let time = Time {
            secs: 1_700_000_000,
            nanos: 250_000_000,
        };
        for (stamps, precision, word) in [
            (Epoch, Nanos, "-d@1700000000.250000000"),
            (Epoch, Seconds, "-d@1700000000"),
            (Iso, Nanos, "-d2023-11-14T22:13:20.250000000Z"),
            (Iso, Seconds, "-d2023-11-14T22:13:20Z"),
            (Compact, Seconds, "-t202311142213.20"),
        ] {
            assert_eq!(tools(stamps, precision).stamp(time), word);
        }
    }

    #[test]
    fn versions_are_told_as_the_host_prints_them() {
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
        for (flavour, nanos, text) in [
            (Flavour::Gnu, 5, "1 2 5 1700000000.000000005"),
            (Flavour::Bsd, 5, "1 2 5 1700000000.000000005"),
            (
                Flavour::BusyBox,
                5,
                "1 2 5 2023-11-14 22:13:20.000000005 +0000",
            ),
            (Flavour::Ls, 5, "2 5 2023-11-14 22:13:20.000000005"),
            (
                Flavour::Ls,
                0,
                "c 2 5 2023-11-14 22:13:20 2023-11-14 22:13:20",
            ),
        ] {
            assert_eq!(flavour.version_text(&version(nanos)).unwrap(), text);
        }
        let version = Version {
            id: None,
            ..version(0)
        };
        assert_eq!(Flavour::Ls.version_text(&version), None);
    }

    /// dropbear grants a channel a window of 24 KiB; more would cost a round trip. What is left of
    /// it is for the request that the second part is sent with.
    #[test]
    fn helpers_fit_into_a_small_window() {
        const MAX_PART: usize = 20 << 10;
        let tools = tools(Stamps::Epoch, TimePrecision::Seconds);
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
