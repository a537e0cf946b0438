//! The help, of which the README shows parts.

use std::fmt::Write as _;

use crate::cli::USAGE;
use crate::cli::options;
use crate::cli::options::Group;

/// The commands beside mounting, as the help and the README show them.
const COMMANDS: &[(&str, &str)] = &[
    (
        "status [MOUNTPOINT]",
        "how a mount is, or all: connection, cache, what is not uploaded; --json, --watch",
    ),
    (
        "umount MOUNTPOINT",
        "upload what is not uploaded, then unmount; --timeout SECONDS (60), --force",
    ),
    (
        "recover",
        "contents that are on no host: --list, --save DIR [ID...], --discard ID...",
    ),
    (
        "doctor HOST[:DIR]",
        "what a mount would find and do; takes the options of a mount",
    ),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Screen,
    Full,
}

/// The help; on one screen, or all of it.
pub(super) fn help(length: Length) -> String {
    let mut text = format!(
        "{USAGE}\n\n\
         Mounts a directory of a host over SSH and SCP; SFTP is not needed.\n\
         Unmount with `scpfs umount`, `fusermount3 -u` or `umount`.\n\n\
         \x20 -p PORT            port of the SSH server\n\
         \x20 -F FILE            ssh_config to use instead of ~/.ssh/config\n\
         \x20 -f, -d             stay in the foreground; so, with a debug log\n\
         \x20 -C                 compress\n\
         \x20 -h, --help         this screen; everything\n\
         \x20 -V, --version      version\n\
         \x20 -o OPTION,...      the options below, and those of ssh_config(5): -o IdentityFile=~/.ssh/key\n"
    );
    text.push_str(&command_text());
    text.push_str(&option_text());
    if length == Length::Full {
        text.push_str(
            "\nEach option may also be given as --NAME=VALUE. Options of sshfs that have no meaning\n\
             here, and those of mount(8) and systemd in fstab lines, are accepted and ignored.\n\
             RUST_LOG chooses what is logged, for example RUST_LOG=scpfs=debug.\n\n\
             Exit status: 0 unmounted (or in the background), 1 wrong usage, 2 cannot connect,\n\
             3 host key refused, 4 authentication failed, 5 cannot mount here, 6 files could not\n\
             be uploaded on the host, 7 the host or its directory cannot be mounted.\n",
        );
    }
    text
}

/// The commands as `-h` and the README show them.
pub fn command_text() -> String {
    let mut text = "\nCommands\n".to_owned();
    for (name, help) in COMMANDS {
        let _ = writeln!(text, "  {name:<27} {help}");
    }
    text
}

/// The options as `-h` and the README show them.
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
    fn the_help_names_every_option_and_fits_a_screen() {
        let text = help(Length::Screen);
        for spec in options::OPTIONS {
            assert!(text.contains(spec.name), "{}", spec.name);
        }
        assert!(text.lines().count() <= 54, "{}", text.lines().count());
    }
}
