//! Programs and rights that tests need, and the only function that skips a test.
//!
//! A test that lacks something is skipped with a line that names it, or fails if the
//! comma-separated words of `SCPFS_REQUIRE` include it.

/// Something that the machine of the tests may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capability {
    /// OpenSSH's `scp`.
    Scp,
    /// The requirements of a throwaway OpenSSH server: root, `sshd`, namespaces.
    Sshd,
    /// `/dev/fuse`.
    Fuse,
    /// Network namespaces with `ip` and `nft`.
    Network,
    /// dropbear's server.
    Dropbear,
    /// dropbear's `scp`, which `scripts/dropbear-scp` builds.
    DropbearScp,
    /// The login shells that tests use, and toybox.
    Shells,
    /// Root, to act as several users.
    Root,
    /// A filesystem that supports the file attributes of `chattr`, below the directory of the
    /// tests.
    Attributes,
}

impl Capability {
    pub const ALL: &[Self] = &[
        Self::Scp,
        Self::Sshd,
        Self::Fuse,
        Self::Network,
        Self::Dropbear,
        Self::DropbearScp,
        Self::Shells,
        Self::Root,
        Self::Attributes,
    ];

    /// The word for this capability in `SCPFS_REQUIRE`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Scp => "scp",
            Self::Sshd => "sshd",
            Self::Fuse => "fuse",
            Self::Network => "network",
            Self::Dropbear => "dropbear",
            Self::DropbearScp => "dropbear-scp",
            Self::Shells => "shells",
            Self::Root => "root",
            Self::Attributes => "attributes",
        }
    }
}

/// Whether the test runs as root; reports a skip if not.
pub fn is_root() -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        skip(Capability::Root, "root");
    }
    is_root
}

/// Unwraps an `Option`, or returns from the test if it is `None`. The call that returned `None` has
/// reported what is missing, see [`skip`].
#[macro_export]
macro_rules! or_skip {
    ($needed:expr) => {{
        let Some(needed) = $needed else {
            return;
        };
        needed
    }};
}

/// Reports that a test is skipped because `missing` is missing. Panics if `SCPFS_REQUIRE` contains
/// the capability.
pub fn skip(capability: Capability, missing: &str) {
    let required = std::env::var("SCPFS_REQUIRE").unwrap_or_default();
    let word = capability.word();
    assert!(
        !names(&required, capability),
        "SCPFS_REQUIRE has {word}, but missing: {missing}"
    );
    eprintln!("SKIPPED: missing {missing} for a test with {word}");
}

/// Whether this comma-separated list contains a capability. Panics at an unknown word.
pub fn names(required: &str, capability: Capability) -> bool {
    let words = required.split(',').map(str::trim);
    let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
    for word in &words {
        let is_known = Capability::ALL.iter().any(|known| known.word() == *word);
        assert!(
            is_known,
            "SCPFS_REQUIRE has a word that no test knows: {word}"
        );
    }
    words.contains(&capability.word())
}
