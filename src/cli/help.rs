//! The help texts; README.md contains the commands and the options.

use std::fmt::Write as _;

use crate::cli::USAGE;
use crate::cli::options;
use crate::cli::options::Group;

/// The subcommands and their descriptions.
const COMMANDS: &[(&str, &str)] = &[
    (
        "status [MOUNTPOINT]",
        "show one mount or all: connection, cache, files not uploaded; --json, --watch",
    ),
    (
        "umount MOUNTPOINT",
        "upload all changed files, then unmount; --timeout SECONDS (60), --force",
    ),
    (
        "recover",
        "content that is not uploaded: --list, --save DIR [ID...], --discard ID...",
    ),
    (
        "doctor HOST[:DIR]",
        "check what a mount would find, without mounting; takes the options of a mount",
    ),
];

/// Which help text to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    /// `-h`: fits on one screen.
    Screen,
    /// `--help`: everything.
    Full,
}

/// Returns the help text.
pub(super) fn help(length: Length) -> String {
    let mut text = format!(
        "{USAGE}\n\n\
         Mounts a directory of a host over SSH and SCP; SFTP is not needed. Unmount with `umount`.\n\n\
         \x20 -p PORT            port of the SSH server\n\
         \x20 -F FILE            read this file instead of ~/.ssh/config\n\
         \x20 -f, -d             stay in the foreground; -d also logs debug messages\n\
         \x20 -C                 compress the connection\n\
         \x20 -h, --help, -V     print this screen, all help, or the version\n\
         \x20 -o OPTION,...      the options below, and those of ssh_config(5): -o IdentityFile=~/.ssh/key\n"
    );
    text.push_str(&command_text());
    text.push_str(&option_text());
    if length == Length::Full {
        text.push_str(
            "\nEach option may also be given as --NAME=VALUE. Options of sshfs that have no meaning\n\
             here, and those of mount(8) and systemd in fstab lines, are accepted and ignored.\n\
             RUST_LOG selects the log messages, for example RUST_LOG=scpfs=debug.\n\n\
             Exit status: 0 success (unmounted, or mounted in the background), 1 wrong usage,\n\
             2 cannot connect, 3 host key refused, 4 authentication failed, 5 this machine cannot\n\
             mount, 6 files could not be uploaded, 7 the host or its directory cannot be mounted,\n\
             130 interrupted before the mount was ready.\n",
        );
    }
    text
}

/// Returns the descriptions of the subcommands, as in `-h` and README.md.
pub fn command_text() -> String {
    let mut text = "\nCommands\n".to_owned();
    for (name, help) in COMMANDS {
        let _ = writeln!(text, "  {name:<27} {help}");
    }
    text
}

/// Returns the descriptions of the options, as in `-h` and README.md.
pub fn option_text() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        let _ = writeln!(text, "\n{}", group.title());
        for spec in options::OPTIONS.iter().filter(|spec| spec.group == group) {
            let name = if spec.value.is_empty() {
                spec.name.to_owned()
            } else {
                format!("{}={}", spec.name, spec.value)
            };
            let _ = writeln!(text, "  {name:<27} {}", spec.help);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_names_every_option_and_fits_on_one_screen() {
        let text = help(Length::Screen);
        for spec in options::OPTIONS {
            assert!(text.contains(spec.name), "{}", spec.name);
        }
        assert!(text.lines().count() <= 54, "{}", text.lines().count());
    }
}
