//! What is special about a server: what its name tells, and what trying it has shown.

use crate::scp_only::command::Options;
use crate::scp_only::command::Quoting;

/// When the answers to a server's records may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    /// All at once, before the records: one round trip.
    Ahead,
    /// Each after its record: servers that read one answer from each packet lose the others, and
    /// an error line where a record was expected would shift all that follow.
    InTurn,
}

/// What a server does when a file or directory that it announces is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It leaves the content out and goes on with the next: directories can be listed.
    Skips,
    /// It sends the content all the same, or ends the transfer: they cannot.
    Unheeded,
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quirks {
    pub quoting: Quoting,
    pub options: Options,
    pub answers: Answers,
    pub refusal: Refusal,
    /// Whether each file comes with its times.
    pub has_times: bool,
}

impl Quirks {
    /// Whether the other side is OpenSSH's scp, or dropbear's, which is the same code: its order
    /// of things is known, down to what it does with a record that cannot be.
    pub fn is_rcp(&self) -> bool {
        self.answers == Answers::Ahead
    }
}

/// A server that is known by its name.
struct Server {
    /// What its identification string begins with, after `SSH-2.0-`.
    banner: &'static str,
    answers: Answers,
    /// `None` where it has to be tried out.
    refusal: Option<Refusal>,
}

/// The servers whose behaviour their source tells; what is not here is asked in turn and tried.
const SERVERS: &[Server] = &[
    // The same scp.c, but behind cmd.exe or PowerShell (Win32-OpenSSH #868, libssh2 #139):
    // whether answers survive the pipe between them was not tried.
    Server {
        banner: "OpenSSH_for_Windows",
        answers: Answers::InTurn,
        refusal: None,
    },
    // scp.c source(), rsource(), response(): one byte is read at a time, a refusal is `goto next`
    // or `return`. So since 1999 (commit d4a8b7e34).
    Server {
        banner: "OpenSSH",
        answers: Answers::Ahead,
        refusal: Some(Refusal::Skips),
    },
    // scp.c is a fork of OpenSSH's. Tried with 2022.83 and OpenSSH's scp behind it. OpenWrt takes the version out of the name.
    Server {
        banner: "dropbear",
        answers: Answers::Ahead,
        refusal: Some(Refusal::Skips),
    },
    // contrib/mod_sftp/scp.c read_confirm(): -1 for any refusal, which closes the channel; one
    // confirmation is parsed of a packet and the rest of it dropped.
    Server {
        banner: "mod_sftp",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Unheeded),
    },
    // src/wolfscp.c ReceiveScpConfirmation(): any refusal is WS_FATAL_ERROR; one read is one
    // confirmation.
    Server {
        banner: "wolfSSH",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Unheeded),
    },
    // ScpHelper.java, ScpAckInfo: a warning is logged, and the content is sent.
    Server {
        banner: "APACHE-SSHD",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Unheeded),
    },
    Server {
        banner: "SSHD-CORE",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Unheeded),
    },
    // Gerrit has Apache MINA's.
    Server {
        banner: "GerritCodeReview",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Unheeded),
    },
    // scp.py handle_error(): the server goes on with the next. Tried with 2.24.
    Server {
        banner: "AsyncSSH",
        answers: Answers::InTurn,
        refusal: Some(Refusal::Skips),
    },
    // charmbracelet/wish, behind Go's own SSH library: scp/copy_to_client.go never reads an
    // answer.
    Server {
        banner: "Go",
        answers: Answers::InTurn,
        refusal: None,
    },
    // "-p -r -d options not supported": found by trying.
    Server {
        banner: "Cisco",
        answers: Answers::InTurn,
        refusal: None,
    },
];

/// What the name of a server says about it.
pub(super) fn by_banner(banner: &str) -> (Answers, Option<Refusal>) {
    let name = banner
        .trim()
        .strip_prefix("SSH-2.0-")
        .unwrap_or(banner.trim());
    SERVERS
        .iter()
        .find(|server| name.starts_with(server.banner))
        .map_or((Answers::InTurn, None), |server| {
            (server.answers, server.refusal)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_go_ahead_only_to_servers_whose_source_allows_it() {
        for (banner, expected) in [
            ("SSH-2.0-OpenSSH_9.2p1 Debian-2", Answers::Ahead),
            ("SSH-2.0-dropbear", Answers::Ahead),
            ("SSH-2.0-dropbear_2022.83", Answers::Ahead),
            ("SSH-2.0-OpenSSH_for_Windows_9.5", Answers::InTurn),
            ("SSH-2.0-Cisco-1.25", Answers::InTurn),
            ("SSH-2.0-mod_sftp/1.3.8", Answers::InTurn),
            ("SSH-2.0-local", Answers::InTurn),
            ("", Answers::InTurn),
        ] {
            assert_eq!(by_banner(banner).0, expected, "{banner}");
        }
    }
}
