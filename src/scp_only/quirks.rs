//! Differences between servers: known from their banner, or found out by the probe.

use crate::scp_only::command::Options;
use crate::scp_only::command::Quoting;

/// When acknowledgements may be sent to a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acks {
    /// All at once, before the records arrive: one round trip.
    Ahead,
    /// Each after its record. A server that reads one ack per packet loses further ones, and an
    /// error message in place of a record would shift all later acks.
    InTurn,
}

/// The reaction of a source when an entry that it announces is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It skips the content and continues with the next entry: directories can be listed.
    Skips,
    /// It sends the content anyway, or ends the transfer: directories cannot be listed.
    Unsupported,
}

/// The known differences of one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    pub quoting: Quoting,
    pub options: Options,
    pub acks: Acks,
    pub refusal: Refusal,
    /// Whether a T record precedes each entry.
    pub has_times: bool,
}

impl Quirks {
    /// Returns whether the peer is OpenSSH's scp or dropbear's fork of it. The order of its steps
    /// is known from the source, including the handling of invalid records.
    pub fn is_openssh_scp(&self) -> bool {
        self.acks == Acks::Ahead
    }
}

/// A server that is known by its banner.
struct Server {
    /// The start of its identification string, after `SSH-2.0-`.
    banner: &'static str,
    acks: Acks,
    /// `None` if the probe must find it out.
    refusal: Option<Refusal>,
}

/// The servers whose behaviour is known from their source. All others get acks in turn and are
/// probed.
const SERVERS: &[Server] = &[
    // The same scp.c, but behind cmd.exe or PowerShell (Win32-OpenSSH #868, libssh2 #139). Whether
    // acks sent ahead survive the pipe between them was not tested.
    Server {
        banner: "OpenSSH_for_Windows",
        acks: Acks::InTurn,
        refusal: None,
    },
    // scp.c source(), rsource(), response(): they read one byte at a time, and a refusal is `goto
    // next` or `return`. Unchanged since 1999 (commit d4a8b7e34).
    Server {
        banner: "OpenSSH",
        acks: Acks::Ahead,
        refusal: Some(Refusal::Skips),
    },
    // A fork of OpenSSH's scp.c. Tested with 2022.83, and with OpenSSH's scp behind it. OpenWrt
    // removes the version from the banner.
    Server {
        banner: "dropbear",
        acks: Acks::Ahead,
        refusal: Some(Refusal::Skips),
    },
    // contrib/mod_sftp/scp.c read_confirm(): returns -1 for any refusal, which closes the channel;
    // parses one ack of a packet and drops the rest.
    Server {
        banner: "mod_sftp",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Unsupported),
    },
    // src/wolfscp.c ReceiveScpConfirmation(): any refusal is WS_FATAL_ERROR; one read is one ack.
    Server {
        banner: "wolfSSH",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Unsupported),
    },
    // ScpHelper.java, ScpAckInfo: logs a warning and sends the content.
    Server {
        banner: "APACHE-SSHD",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Unsupported),
    },
    Server {
        banner: "SSHD-CORE",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Unsupported),
    },
    // Gerrit uses Apache MINA's.
    Server {
        banner: "GerritCodeReview",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Unsupported),
    },
    // scp.py handle_error(): the server continues with the next entry. Tested with 2.24.
    Server {
        banner: "AsyncSSH",
        acks: Acks::InTurn,
        refusal: Some(Refusal::Skips),
    },
    // charmbracelet/wish, behind Go's own SSH library: scp/copy_to_client.go never reads an ack.
    Server {
        banner: "Go",
        acks: Acks::InTurn,
        refusal: None,
    },
    // "-p -r -d options not supported": found by testing.
    Server {
        banner: "Cisco",
        acks: Acks::InTurn,
        refusal: None,
    },
];

/// Returns what a server's banner tells about it.
pub(super) fn by_banner(banner: &str) -> (Acks, Option<Refusal>) {
    let name = banner
        .trim()
        .strip_prefix("SSH-2.0-")
        .unwrap_or(banner.trim());
    SERVERS
        .iter()
        .find(|server| name.starts_with(server.banner))
        .map_or((Acks::InTurn, None), |server| (server.acks, server.refusal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_banner_sends_acks_ahead_only_to_servers_with_known_source() {
        for (banner, expected) in [
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2", Acks::Ahead),
            ("SSH-2.0-dropbear", Acks::Ahead),
            ("SSH-2.0-dropbear_2022.83", Acks::Ahead),
            ("SSH-2.0-OpenSSH_for_Windows_9.5", Acks::InTurn),
            ("SSH-2.0-Cisco-1.25", Acks::InTurn),
            ("SSH-2.0-mod_sftp/1.3.8", Acks::InTurn),
            ("SSH-2.0-local", Acks::InTurn),
            ("", Acks::InTurn),
        ] {
            assert_eq!(by_banner(banner).0, expected, "{banner}");
        }
    }
}
